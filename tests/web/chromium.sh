#!/usr/bin/env bash
# Prints a Chromium that runs; installs Debian's, or Playwright's own, where there is none. Status 3: neither works.
set -u
python=$1

found() {
    for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
        [ -n "${name}" ] && command -v "${name}" && return 0
    done
    return 1
}

found && exit 0
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get > /dev/null; then
    echo "there is no Chromium: installing Debian's" >&2
    { ${as_root} apt-get update && ${as_root} apt-get install -y --no-install-recommends chromium; } >&2
    found && exit 0
fi
echo "installing Playwright's Chromium" >&2
if "${python}" -m playwright install chromium >&2; then
    "${python}" -c 'from playwright.sync_api import sync_playwright
with sync_playwright() as p: print(p.chromium.executable_path)' && exit 0
fi
echo "no Chromium could be installed; install one, and name it by CHROMIUM=/path/to/chromium" >&2
exit 3
