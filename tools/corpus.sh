#!/usr/bin/env bash
# Makes the demonstration corpus: real prose, code and SQL that Debian ships, in data/corpus/{prose,code,sql}, and token
# shards of it in data/tokens. The packages are downloaded and unpacked, never installed. What is there is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

prose_packages=(jargon-text debian-reference-en debian-policy developers-reference fortunes fortunes-min)
code_packages=(libpython3.11-stdlib)
sql_packages=(postgresql-15 zabbix-server-pgsql zabbix-server-mysql)
readonly largest_file=4000000 # bytes: what is longer is cut

say() { printf 'corpus    %s\n' "$*"; }
fail() {
    printf 'corpus.sh: error: %s\n' "$*" >&2
    exit 1
}

work=''
trap '[[ -z $work ]] || rm -rf "$work"' EXIT

refresh_lists() {
    local sudo=()
    [[ $(id -u) == 0 ]] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq || fail "apt-get update failed; look at the network and at /etc/apt/sources.list"
}

download() {
    if (cd "$work/deb" && apt-get download -qq "$@" >/dev/null 2>"$work/apt.log"); then return; fi
    refresh_lists
    (cd "$work/deb" && apt-get download -qq "$@" >/dev/null 2>"$work/apt.log") || {
        cat "$work/apt.log" >&2
        fail "could not download $*; look at the network, then run this again"
    }
}

unpack() { # the packages' files, under $work/NAME
    local name=$1
    shift
    mkdir -p "$work/deb" "$work/$name"
    download "$@"
    local deb
    for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/$name"; done
    rm -rf "$work/deb"
}

html_to_text() {
    sed -e 's/<[^>]*>//g' -e 's/&lt;/</g' -e 's/&gt;/>/g' -e 's/&quot;/"/g' -e 's/&nbsp;/ /g' -e 's/&amp;/\&/g' | cat -s
}

take() { # FILE NAME: a readable copy of FILE, unpacked, in $work/out
    case $1 in
    *.html.gz) gzip -dc "$1" | html_to_text >"$work/out/$2" ;;
    *.html) html_to_text <"$1" >"$work/out/$2" ;;
    *.gz) gzip -dc "$1" >"$work/out/$2" ;;
    *) cp "$1" "$work/out/$2" ;;
    esac
}

# make SOURCE PATTERN-FUNCTION PACKAGE…
make_source() {
    local source=$1 find_files=$2 count=0 file
    shift 2
    if [[ -d data/corpus/$source ]]; then return; fi
    say "$source: text from $*"
    work=$(mktemp -d "${TMPDIR:-/tmp}/floe-corpus.XXXXXX")
    mkdir -p "$work/out"
    unpack "$source" "$@"
    while IFS= read -r file; do
        take "$file" "$(printf '%04d-%s.txt' "$count" "$(basename "$file" | tr -c 'A-Za-z0-9._\n' '_')")"
        count=$((count + 1))
    done < <("$find_files" "$work/$source" | LC_ALL=C sort)
    find "$work/out" -type f -size -64c -delete
    find "$work/out" -type f -size "+${largest_file}c" -exec truncate -s "$largest_file" {} +
    [[ $count -gt 0 ]] || fail "$source: the packages $* hold no such text any more"
    mkdir -p data/corpus
    chmod -R u=rwX,go=rX "$work/out"
    mv "$work/out" "data/corpus/$source.part"
    mv "data/corpus/$source.part" "data/corpus/$source"
    rm -rf "$work"
    work=''
    say "$source: $count files, $(du -sk "data/corpus/$source" | cut -f1) KiB"
}

find_prose() {
    find "$1/usr/share" -type f \( -name 'jargon.txt*' -o -name 'debian-reference.en.txt.gz' -o -name 'policy.txt*' -o \
        -path '*/developers-reference/*.txt*' -o -path '*/games/fortunes/*' ! -name '*.dat' \)
}
find_code() { find "$1/usr/lib/python3.11" -type f -name '*.py' -size +2k; }
# Not the scripts that are pictures in hexadecimal; of Zabbix's huge insert scripts the first part (largest_file).
find_sql() { find "$1/usr/share" -type f \( -name '*.sql' -o -name '*.sql.gz' \) ! -name 'images.sql*'; }

pack() {
    local source=$1
    if [[ -f data/tokens/$source.idx && data/tokens/$source.idx -nt data/corpus/$source ]]; then return; fi
    mkdir -p data/tokens
    build/floe data pack "data/corpus/$source" -o "data/tokens/$source" --tokenizer bytes
}

make_source prose find_prose "${prose_packages[@]}"
make_source code find_code "${code_packages[@]}"
make_source sql find_sql "${sql_packages[@]}"
for source in prose code sql; do pack "$source"; done
say "ready: data/tokens/{prose,code,sql}"
