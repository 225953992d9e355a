#!/usr/bin/env bash
# What the book needs beside Python: a browser for the browser test, a font with Japanese characters for pictures and
# screenshots. Installs them where it may (root on Debian or Ubuntu), else prints the line that does.
set -euo pipefail

missing=()
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing+=(chromium)
[ -n "$(fc-list :lang=ja 2>/dev/null)" ] || missing+=(fonts-noto-cjk fontconfig)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
else
    echo "This machine lacks ${missing[*]}. On Debian or Ubuntu:"
    echo "    sudo apt-get install ${missing[*]}"
fi
