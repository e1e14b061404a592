<?php
// Usage: GATEWAY_KEY=… php php.php FILE      (needs php-curl)
declare(strict_types=1);

function call(string $method, string $path, ?array $json = null): array
{
    $headers = ['Content-Type: application/json'];
    if ($key = getenv('GATEWAY_KEY')) {
        $headers[] = "X-Cfproxy-Key: $key";
    }
    $proxyStatus = '';
    $curl = curl_init((getenv('GATEWAY_URL') ?: 'http://localhost:8080') . $path);
    curl_setopt_array($curl, [
        CURLOPT_CUSTOMREQUEST => $method,
        CURLOPT_HTTPHEADER => $headers,
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 120,
        CURLOPT_HEADERFUNCTION => function ($curl, string $line) use (&$proxyStatus): int {
            if (stripos($line, 'Proxy-Status:') === 0) {
                $proxyStatus = trim(substr($line, 13));
            }
            return strlen($line);
        },
    ]);
    if ($json !== null) {
        curl_setopt($curl, CURLOPT_POSTFIELDS, json_encode($json, JSON_THROW_ON_ERROR));
    }
    $body = curl_exec($curl);
    if ($body === false) {
        throw new RuntimeException(curl_error($curl));
    }
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    if ($status >= 400) {
        $who = str_starts_with($proxyStatus, 'cfproxy') ? 'cfproxy' : 'the API';
        throw new RuntimeException("$who answered $status: $body");
    }
    return json_decode($body, true, flags: JSON_THROW_ON_ERROR);
}

/** Pages are numbered from 1; a page that is not full is the last one. */
function listJobs(int $pageSize = 25): Generator
{
    for ($number = 1; ; $number++) {
        $page = call('GET', '/v1/jobs?' . http_build_query(['pageNumber' => $number, 'pageSize' => $pageSize]));
        yield from $page['pageData'];
        if (count($page['pageData']) < $pageSize) {
            return;
        }
    }
}

/** Ask the API for an upload URL; send the file there without the key. */
function upload(string $path): void
{
    $slot = call('POST', '/v1/assets/get-presigned-url', ['fileName' => basename($path)]);
    $curl = curl_init($slot['url']);
    curl_setopt_array($curl, [
        CURLOPT_UPLOAD => true,
        CURLOPT_INFILE => fopen($path, 'rb'),
        CURLOPT_INFILESIZE => filesize($path),
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_FAILONERROR => true,
    ]);
    if (curl_exec($curl) === false) {
        throw new RuntimeException(curl_error($curl));
    }
}

try {
    $jobs = iterator_to_array(listJobs(), preserve_keys: false);
    echo count($jobs), " jobs\n";

    $job = call('GET', "/v1/jobs/{$jobs[0]['id']}");
    echo "{$job['code']}: {$job['name']}\n";

    $changed = call('PUT', "/v1/jobs/{$job['id']}", ['name' => "{$job['name']} é"]);
    echo "renamed to {$changed['name']}\n";

    upload($argv[1]);
    echo 'uploaded ', basename($argv[1]), "\n";
} catch (RuntimeException $problem) {
    fwrite(STDERR, $problem->getMessage() . "\n");
    exit(1);
}

try {
    call('GET', '/v1/jobs/00000000-0000-4000-8000-000000000000');
} catch (RuntimeException $problem) {
    echo $problem->getMessage(), "\nno such job\n";
}
