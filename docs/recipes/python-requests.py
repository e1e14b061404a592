"""Usage: GATEWAY_KEY=… python python-requests.py FILE      (needs requests)."""

import os
import sys
from pathlib import Path

import requests

URL = os.environ.get("GATEWAY_URL", "http://localhost:8080")
gateway = requests.Session()
if "GATEWAY_KEY" in os.environ:
    gateway.headers["X-Cfproxy-Key"] = os.environ["GATEWAY_KEY"]


def call(method, path, **options):
    answer = gateway.request(method, URL + path, timeout=120, **options)
    if answer.status_code >= 400:
        ours = answer.headers.get("Proxy-Status", "").startswith("cfproxy")
        who = "cfproxy" if ours else "the API"
        raise RuntimeError(f"{who} answered {answer.status_code}: {answer.text}")
    return answer.json()


def list_jobs(page_size=25):
    """Pages are numbered from 1; a page that is not full is the last one."""
    number = 1
    while True:
        page = call("GET", "/v1/jobs", params={"pageNumber": number, "pageSize": page_size})["pageData"]
        yield from page
        if len(page) < page_size:
            return
        number += 1


def upload(path):
    """Ask the API for an upload URL; send the file there without the key."""
    slot = call("POST", "/v1/assets/get-presigned-url", json={"fileName": path.name})
    with path.open("rb") as file:
        requests.put(slot["url"], data=file, timeout=120).raise_for_status()


def main():
    jobs = list(list_jobs())
    print(len(jobs), "jobs")

    job = call("GET", f"/v1/jobs/{jobs[0]['id']}")
    print(f"{job['code']}: {job['name']}")

    changed = call("PUT", f"/v1/jobs/{job['id']}", json={"name": f"{job['name']} é"})
    print("renamed to", changed["name"])

    file = Path(sys.argv[1])
    upload(file)
    print("uploaded", file.name)

    try:
        call("GET", "/v1/jobs/00000000-0000-4000-8000-000000000000")
    except RuntimeError as problem:
        print(problem)
        print("no such job")


main()
