# Usage: $env:GATEWAY_KEY = '…'; pwsh powershell.ps1 FILE      (PowerShell 7)
param([Parameter(Mandatory)][string]$File)
$ErrorActionPreference = 'Stop'
$url = if ($env:GATEWAY_URL) { $env:GATEWAY_URL } else { 'http://localhost:8080' }
$headers = @{}
if ($env:GATEWAY_KEY) { $headers['X-Cfproxy-Key'] = $env:GATEWAY_KEY }

function Invoke-Gateway([string]$Method, [string]$Path, $Json) {
    $request = @{ Method = $Method; Uri = "$url$Path"; Headers = $headers; TimeoutSec = 120 }
    if ($Json) {
        $request.ContentType = 'application/json; charset=utf-8'
        $request.Body = $Json | ConvertTo-Json -Depth 10
    }
    $answer = Invoke-WebRequest @request -SkipHttpErrorCheck
    $text = if ($answer.Content -is [byte[]]) { [Text.Encoding]::UTF8.GetString($answer.Content) } else { $answer.Content }
    if ($answer.StatusCode -ge 400) {
        $who = if ("$($answer.Headers['Proxy-Status'])".StartsWith('cfproxy')) { 'cfproxy' } else { 'the API' }
        throw "$who answered $($answer.StatusCode): $text"
    }
    $text | ConvertFrom-Json
}

# Pages are numbered from 1; a page that is not full is the last one.
function Get-GatewayJob([int]$PageSize = 25) {
    for ($number = 1; ; $number++) {
        $page = (Invoke-Gateway GET "/v1/jobs?pageNumber=$number&pageSize=$PageSize").pageData
        $page
        if (@($page).Count -lt $PageSize) { return }
    }
}

# Ask the API for an upload URL; send the file there without the key.
function Send-File([string]$Path) {
    $slot = Invoke-Gateway POST '/v1/assets/get-presigned-url' @{ fileName = Split-Path -Leaf $Path }
    Invoke-WebRequest -Method PUT -Uri $slot.url -InFile $Path | Out-Null
}

try {
    $jobs = @(Get-GatewayJob)
    "$($jobs.Count) jobs"

    $job = Invoke-Gateway GET "/v1/jobs/$($jobs[0].id)"
    "$($job.code): $($job.name)"

    $changed = Invoke-Gateway PUT "/v1/jobs/$($job.id)" @{ name = "$($job.name) é" }
    "renamed to $($changed.name)"

    Send-File $File
    "uploaded $(Split-Path -Leaf $File)"
} catch {
    [Console]::Error.WriteLine($_.Exception.Message)
    exit 1
}

try {
    Invoke-Gateway GET '/v1/jobs/00000000-0000-4000-8000-000000000000'
} catch {
    $_.Exception.Message
    'no such job'
}
