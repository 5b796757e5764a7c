#!/usr/bin/env bash
# Prints a Chromium that runs; installs Debian's, or Playwright's own, where there is none.
# Status 3: there is none, and none can be had. Status 4: one is there and does not start, and no other can be had.
set -u
python=$1
status=3

# A binary may lack a library, or be a stub that asks for a snap; only one that says its version counts.
runs() {
    "$1" --version > /dev/null 2>&1 && return 0
    echo "$1 is there and does not start" >&2
    status=4
    return 1
}

found() {
    local name place
    for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
        [ -n "${name}" ] && place=$(command -v "${name}") && runs "${place}" && echo "${place}" && return 0
    done
    return 1
}

found && exit 0
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get > /dev/null; then
    echo "there is no Chromium that runs: installing Debian's" >&2
    { ${as_root} apt-get update && ${as_root} apt-get install -y --no-install-recommends chromium; } >&2
    found && exit 0
fi
echo "installing Playwright's Chromium" >&2
if "${python}" -m playwright install chromium >&2; then
    place=$("${python}" -c 'from playwright.sync_api import sync_playwright
with sync_playwright() as p: print(p.chromium.executable_path)') && runs "${place}" && echo "${place}" && exit 0
fi
echo "no Chromium could be installed; install one, and name it by CHROMIUM=/path/to/chromium" >&2
exit ${status}
