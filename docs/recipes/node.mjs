// Usage: GATEWAY_KEY=… node node.mjs FILE      (Node 20 or newer)
import { openAsBlob } from "node:fs";
import { basename } from "node:path";

const url = process.env.GATEWAY_URL ?? "http://localhost:8080";
const key = process.env.GATEWAY_KEY;

async function call(method, path, json) {
  const headers = { ...(key && { "X-Cfproxy-Key": key }), ...(json && { "Content-Type": "application/json" }) };
  const answer = await fetch(url + path, { method, headers, body: json && JSON.stringify(json) });
  if (!answer.ok) {
    const who = answer.headers.get("Proxy-Status")?.startsWith("cfproxy") ? "cfproxy" : "the API";
    throw new Error(`${who} answered ${answer.status}: ${await answer.text()}`);
  }
  return answer.json();
}

// Pages are numbered from 1; a page that is not full is the last one.
async function* listJobs(pageSize = 25) {
  for (let number = 1; ; number++) {
    const { pageData } = await call("GET", `/v1/jobs?pageNumber=${number}&pageSize=${pageSize}`);
    yield* pageData;
    if (pageData.length < pageSize) return;
  }
}

// Ask the API for an upload URL; send the file there without the key.
async function upload(path) {
  const slot = await call("POST", "/v1/assets/get-presigned-url", { fileName: basename(path) });
  const answer = await fetch(slot.url, { method: "PUT", body: await openAsBlob(path) });
  if (!answer.ok) throw new Error(`the object store answered ${answer.status}`);
}

try {
  const jobs = [];
  for await (const job of listJobs()) jobs.push(job);
  console.log(`${jobs.length} jobs`);

  const job = await call("GET", `/v1/jobs/${jobs[0].id}`);
  console.log(`${job.code}: ${job.name}`);

  const changed = await call("PUT", `/v1/jobs/${job.id}`, { name: `${job.name} é` });
  console.log(`renamed to ${changed.name}`);

  await upload(process.argv[2]);
  console.log(`uploaded ${basename(process.argv[2])}`);
} catch (problem) {
  console.error(problem.message);
  process.exit(1);
}

await call("GET", "/v1/jobs/00000000-0000-4000-8000-000000000000").catch((problem) => {
  console.log(`${problem.message}\nno such job`);
});
