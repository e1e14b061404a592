#!/bin/sh
# Usage: GATEWAY_KEY=… sh curl.sh FILE      (needs jq)
set -eu
url=${GATEWAY_URL:-http://localhost:8080}
key=${GATEWAY_KEY:-}
file=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Call the API and print the response body; on an error, print it to stderr and return 1.
# Pass the key on standard input: other users can read a command line.
call() {
  status=$(printf 'X-Cfproxy-Key: %s' "$key" |
    curl -sS -H @- -D "$dir/head" -o "$dir/body" -w '%{http_code}' "$@") || return 1
  [ "$status" -ge 400 ] || { cat "$dir/body"; return 0; }
  who='the API'
  if grep -qi '^proxy-status: *cfproxy' "$dir/head"; then who=cfproxy; fi
  echo "$who answered $status: $(cat "$dir/body")" >&2
  return 1
}

# List: pages are numbered from 1; a page that is not full is the last one.
page=1
while
  call "$url/v1/jobs?pageSize=25&pageNumber=$page" >"$dir/page" || exit 1
  jq -c '.pageData[]' "$dir/page" >>"$dir/jobs"
  [ "$(jq '.pageData | length' "$dir/page")" -eq 25 ]
do page=$((page + 1)); done
echo "$(wc -l <"$dir/jobs") jobs"

# Fetch one.
id=$(head -n 1 "$dir/jobs" | jq -r .id)
call "$url/v1/jobs/$id" >"$dir/job"
jq -r '"\(.code): \(.name)"' "$dir/job"

# Change it.
jq -c '{name: (.name + " é")}' "$dir/job" >"$dir/change"
call -X PUT -H 'Content-Type: application/json' --data @"$dir/change" "$url/v1/jobs/$id" >"$dir/changed"
jq -r '"renamed to \(.name)"' "$dir/changed"

# Upload: the API returns a URL; send the file there without the key.
jq -n --arg name "$(basename "$file")" '{fileName: $name}' >"$dir/announced"
call -H 'Content-Type: application/json' --data @"$dir/announced" "$url/v1/assets/get-presigned-url" >"$dir/slot"
curl -fsS -T "$file" "$(jq -r .url "$dir/slot")"
echo "uploaded $(basename "$file")"

# An error: tell whether cfproxy or the API sent it.
call "$url/v1/jobs/00000000-0000-4000-8000-000000000000" || echo 'no such job'
