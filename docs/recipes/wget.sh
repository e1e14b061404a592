#!/bin/sh
# Usage: GATEWAY_KEY=… sh wget.sh FILE      (needs jq)
set -eu
url=${GATEWAY_URL:-http://localhost:8080}
file=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Write the key to a private file: other users can read a command line.
: >"$dir/wgetrc"
if [ -n "${GATEWAY_KEY:-}" ]; then echo "header = X-Cfproxy-Key: $GATEWAY_KEY" >"$dir/wgetrc"; fi

# Call the API and print the response body; on an error, print it to stderr and return 1.
# wget discards the body of a 401; the header then says what happened.
call() {
  if wget -nv -S -o "$dir/log" --config="$dir/wgetrc" --content-on-error -O "$dir/body" "$@"; then
    cat "$dir/body"
    return 0
  fi
  who='the API'
  if grep -qi '^ *proxy-status: *cfproxy' "$dir/log"; then who=cfproxy; fi
  status=$(sed -n 's|^ *HTTP/1.1 \([0-9]*\).*|\1|p' "$dir/log" | head -n 1)
  echo "$who answered $status: $(cat "$dir/body") $(grep -i '^ *proxy-status:' "$dir/log")" >&2
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
call --method=PUT --header='Content-Type: application/json' --body-file="$dir/change" "$url/v1/jobs/$id" >"$dir/changed"
jq -r '"renamed to \(.name)"' "$dir/changed"

# Upload: the API returns a URL; send the file there without the key.
jq -n --arg name "$(basename "$file")" '{fileName: $name}' >"$dir/announced"
call --header='Content-Type: application/json' --post-file="$dir/announced" "$url/v1/assets/get-presigned-url" >"$dir/slot"
wget -q -O /dev/null --method=PUT --body-file="$file" "$(jq -r .url "$dir/slot")"
echo "uploaded $(basename "$file")"

# An error: tell whether cfproxy or the API sent it.
call "$url/v1/jobs/00000000-0000-4000-8000-000000000000" || echo 'no such job'
