#!/usr/bin/env bash
# `make lock` calls this. It writes what `make demo` and `make test` install: each package with its
# version and the SHA-256 of its files on the public index. Versions that pyproject.toml still allows
# stay; `make lock UPGRADE=--upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")"
compile=(uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header "$@")
compile+=(--python-version 3.11.5 ../pyproject.toml) # soupsieve takes no earlier 3.11

cat gpu.txt >> developer.txt # whose versions stay as well
"${compile[@]}" --extra dev --output-file developer.txt
"${compile[@]}" --constraint developer.txt --output-file user.txt

# what torch asks for on Linux to use a GPU: gigabytes, which its builds for a CPU do without
gpu='/^[a-z]/ { gpu = /^(cuda|nvidia|triton)/ }'
awk "$gpu gpu" user.txt > gpu.txt
for list in user developer; do
    awk "$gpu !gpu" "$list.txt" > "$list.new"
    mv "$list.new" "$list.txt"
done
