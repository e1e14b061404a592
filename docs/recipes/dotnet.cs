// Usage: GATEWAY_KEY=… dotnet run -- FILE      (.NET Core 3.1 or newer; this is Program.cs)
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Net.Http;
using System.Text;
using System.Text.Json;
using System.Threading.Tasks;

static class Program
{
    static readonly HttpClient Gateway = new HttpClient { Timeout = TimeSpan.FromMinutes(2) };
    static readonly HttpClient ObjectStore = new HttpClient();

    static async Task<JsonElement> Call(HttpMethod method, string path, object json = null)
    {
        var request = new HttpRequestMessage(method, path);
        if (json != null)
        {
            request.Content = new StringContent(JsonSerializer.Serialize(json), Encoding.UTF8, "application/json");
        }
        var answer = await Gateway.SendAsync(request);
        var text = await answer.Content.ReadAsStringAsync();
        if (!answer.IsSuccessStatusCode)
        {
            IEnumerable<string> proxyStatus;
            var ours = answer.Headers.TryGetValues("Proxy-Status", out proxyStatus) && proxyStatus.First().StartsWith("cfproxy");
            var who = ours ? "cfproxy" : "the API";
            throw new HttpRequestException($"{who} answered {(int)answer.StatusCode}: {text}");
        }
        return JsonDocument.Parse(text).RootElement;
    }

    // Pages are numbered from 1; a page that is not full is the last one.
    static async Task<List<JsonElement>> ListJobs(int pageSize = 25)
    {
        var jobs = new List<JsonElement>();
        for (var number = 1; ; number++)
        {
            var answer = await Call(HttpMethod.Get, $"/v1/jobs?pageNumber={number}&pageSize={pageSize}");
            var page = answer.GetProperty("pageData");
            jobs.AddRange(page.EnumerateArray());
            if (page.GetArrayLength() < pageSize)
            {
                return jobs;
            }
        }
    }

    // Ask the API for an upload URL; send the file there without the key.
    static async Task Upload(string path)
    {
        var name = new Dictionary<string, string> { { "fileName", Path.GetFileName(path) } };
        var slot = await Call(HttpMethod.Post, "/v1/assets/get-presigned-url", name);
        using (var file = File.OpenRead(path))
        {
            var answer = await ObjectStore.PutAsync(slot.GetProperty("url").GetString(), new StreamContent(file));
            answer.EnsureSuccessStatusCode();
        }
    }

    public static async Task<int> Main(string[] args)
    {
        Gateway.BaseAddress = new Uri(Environment.GetEnvironmentVariable("GATEWAY_URL") ?? "http://localhost:8080");
        var key = Environment.GetEnvironmentVariable("GATEWAY_KEY");
        if (!string.IsNullOrEmpty(key))
        {
            Gateway.DefaultRequestHeaders.Add("X-Cfproxy-Key", key);
        }
        try
        {
            var jobs = await ListJobs();
            Console.WriteLine($"{jobs.Count} jobs");

            var job = await Call(HttpMethod.Get, "/v1/jobs/" + jobs[0].GetProperty("id"));
            Console.WriteLine(job.GetProperty("code") + ": " + job.GetProperty("name"));

            var change = new Dictionary<string, string> { { "name", job.GetProperty("name") + " é" } };
            var changed = await Call(HttpMethod.Put, "/v1/jobs/" + job.GetProperty("id"), change);
            Console.WriteLine("renamed to " + changed.GetProperty("name"));

            await Upload(args[0]);
            Console.WriteLine("uploaded " + Path.GetFileName(args[0]));
        }
        catch (HttpRequestException problem)
        {
            Console.Error.WriteLine(problem.Message);
            return 1;
        }
        try
        {
            await Call(HttpMethod.Get, "/v1/jobs/00000000-0000-4000-8000-000000000000");
        }
        catch (HttpRequestException problem)
        {
            Console.WriteLine($"{problem.Message}\nno such job");
        }
        return 0;
    }
}
