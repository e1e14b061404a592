// Usage: GATEWAY_KEY=… java -cp '/usr/share/java/*' Java.java FILE      (Java 17 or newer, Jackson)
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

public class Java {
    static final String URL = System.getenv().getOrDefault("GATEWAY_URL", "http://localhost:8080");
    static final String KEY = System.getenv("GATEWAY_KEY");
    static final ObjectMapper JSON = new ObjectMapper();
    static final HttpClient HTTP = HttpClient.newHttpClient();

    static JsonNode call(String method, String path, Object json) throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(URL + path)).timeout(Duration.ofMinutes(2));
        if (KEY != null) {
            request.header("X-Cfproxy-Key", KEY);
        }
        if (json == null) {
            request.method(method, BodyPublishers.noBody());
        } else {
            request.header("Content-Type", "application/json");
            request.method(method, BodyPublishers.ofByteArray(JSON.writeValueAsBytes(json)));
        }
        HttpResponse<String> answer = HTTP.send(request.build(), BodyHandlers.ofString());
        if (answer.statusCode() >= 400) {
            boolean ours = answer.headers().firstValue("Proxy-Status").orElse("").startsWith("cfproxy");
            String who = ours ? "cfproxy" : "the API";
            throw new IOException(who + " answered " + answer.statusCode() + ": " + answer.body());
        }
        return JSON.readTree(answer.body());
    }

    /** Pages are numbered from 1; a page that is not full is the last one. */
    static List<JsonNode> listJobs(int pageSize) throws IOException, InterruptedException {
        List<JsonNode> jobs = new ArrayList<>();
        for (int number = 1; ; number++) {
            JsonNode page = call("GET", "/v1/jobs?pageNumber=" + number + "&pageSize=" + pageSize, null);
            page.get("pageData").forEach(jobs::add);
            if (page.get("pageData").size() < pageSize) {
                return jobs;
            }
        }
    }

    /** Ask the API for an upload URL; send the file there without the key. */
    static void upload(Path file) throws IOException, InterruptedException {
        var name = Map.of("fileName", file.getFileName().toString());
        var slot = call("POST", "/v1/assets/get-presigned-url", name);
        var request = HttpRequest.newBuilder(URI.create(slot.get("url").asText())).PUT(BodyPublishers.ofFile(file));
        int status = HTTP.send(request.build(), BodyHandlers.discarding()).statusCode();
        if (status >= 400) {
            throw new IOException("the object store answered " + status);
        }
    }

    public static void main(String[] args) throws InterruptedException {
        try {
            var jobs = listJobs(25);
            System.out.println(jobs.size() + " jobs");

            var job = call("GET", "/v1/jobs/" + jobs.get(0).get("id").asText(), null);
            String id = job.get("id").asText();
            String name = job.get("name").asText();
            System.out.println(job.get("code").asText() + ": " + name);

            var changed = call("PUT", "/v1/jobs/" + id, Map.of("name", name + " é"));
            System.out.println("renamed to " + changed.get("name").asText());

            Path file = Path.of(args[0]);
            upload(file);
            System.out.println("uploaded " + file.getFileName());
        } catch (IOException problem) {
            System.err.println(problem.getMessage());
            System.exit(1);
        }
        try {
            call("GET", "/v1/jobs/00000000-0000-4000-8000-000000000000", null);
        } catch (IOException problem) {
            System.out.println(problem.getMessage() + "\nno such job");
        }
    }
}
