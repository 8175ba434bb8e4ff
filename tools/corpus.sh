#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the demonstration corpus: real prose, code and SQL that Debian ships, as text in data/corpus/{prose,code,sql}
# and as token shards in data/tokens. The packages are downloaded and unpacked, never installed.
# What is there is kept and needs no network; remove data/corpus or data/tokens to make it anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

prose_packages=(bible-kjv bible-kjv-text libreadline8 jargon-text debian-reference-en)
code_packages=(libpython3.11-stdlib)
sql_packages=(postgresql-15 postgresql-15-postgis-3-scripts postgresql-15-pgrouting-scripts zabbix-server-mysql)
least_bytes=3000000 # of text in a source; less means that a package is not what it was

say() { printf 'corpus    %s\n' "$*"; }
fail() {
    printf 'corpus.sh: error: %s\n' "$*" >&2
    exit 1
}

work=''
trap '[[ -z $work ]] || rm -rf "$work"' EXIT

# ---------------------------------------------------------------- packages

update_lists() {
    local sudo=()
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null ||
            fail "apt's package lists are missing or old and there is no sudo here: let root run apt-get update, then run this again"
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -qq </dev/null >"$work/apt.log" 2>&1 || {
        cat "$work/apt.log" >&2
        fail "apt-get update failed; look at the network and at /etc/apt/sources.list, then run this again"
    }
}

download() { # PACKAGE…: to $work/deb
    command -v apt-get >/dev/null || fail "needs apt-get: the corpus is made of Debian packages (bookworm)"
    mkdir "$work/deb"
    (cd "$work/deb" && apt-get download -qq "$@" >"$work/apt.log" 2>&1) && return
    update_lists
    (cd "$work/deb" && apt-get download -qq "$@" >"$work/apt.log" 2>&1) && return
    cat "$work/apt.log" >&2
    fail "could not download $*; look at the network, then run this again (what was made before is kept)"
}

# ---------------------------------------------------------------- text

text_of_prose() { # UNPACKED OUT
    local libraries
    libraries=$(dirname "$(find "$1" -name 'libreadline.so.8' | head -1)")
    # One line a verse, "1Sa2:3 text"; one file a book.
    LD_LIBRARY_PATH=$libraries "$1/usr/bin/bible" -f -p "$1/usr/lib" 'Gen1:1-Rev22:21' </dev/null |
        awk -v out="$2" '{
            book = $1
            sub(/[0-9]+:[0-9]+$/, "", book)
            if (book != last) { close(file); file = sprintf("%s/kjv-%02d-%s.txt", out, ++count, book); last = book }
            sub(/^[^ ]+ /, "")
            print >file
        }'
    gzip -dc "$1/usr/share/doc/jargon-text/jargon.txt.gz" >"$2/jargon.txt"
    gzip -dc "$1/usr/share/debian-reference/debian-reference.en.txt.gz" >"$2/debian-reference.txt"
}

text_of_code() { # UNPACKED OUT
    local file
    find "$1/usr/lib/python3.11" -name '*.py' -size +1k | while IFS= read -r file; do
        cp "$file" "$2/$(sed -e "s|^$1/usr/lib/python3.11/||" -e 's|/|.|g' <<<"$file")"
    done
}

text_of_sql() { # UNPACKED OUT
    local share=$1/usr/share file
    find "$share/postgresql/15" -name '*.sql' -size +1k ! -name '*upgrade*' ! -name 'spatial_ref_sys.sql' \
        ! -path '*/extension/postgis*' ! -path '*/extension/address*' ! -path '*/extension/pgrouting--*--*' |
        while IFS= read -r file; do
            cp "$file" "$2/$(basename "$file")"
        done
    cp "$share"/postgresql/15/extension/postgis_tiger_geocoder--3.?.?.sql "$2"
    gzip -dc "$share/zabbix-server-mysql/schema.sql.gz" >"$2/zabbix-schema.sql"
    # 30 MB of rows: one statement a line, without embedded scripts; tables in their order, every eighth row.
    gzip -dc "$share/zabbix-server-mysql/data.sql.gz" |
        awk '/^INSERT INTO .*\);$/ && length($0) <= 600 && ++rows % 8 == 0' >"$2/zabbix-data.sql"
}

make_source() { # SOURCE PACKAGE…
    local source=$1 deb bytes
    shift
    [[ ! -d data/corpus/$source ]] || return 0
    say "$source: from the Debian packages $*"
    mkdir -p data/corpus
    work=$(mktemp -d "$PWD/data/corpus/.part.XXXXXX")
    mkdir "$work/unpacked" "$work/text"
    download "$@"
    for deb in "$work"/deb/*.deb; do
        dpkg-deb -x "$deb" "$work/unpacked" || fail "$(basename "$deb") could not be unpacked; run this again"
    done
    "text_of_$source" "$work/unpacked" "$work/text" || fail "$source: the packages do not hold the text that was expected"
    bytes=$(find "$work/text" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", sum }')
    [[ $bytes -ge $least_bytes ]] || fail "$source: only $bytes bytes of text in $*, expected at least $least_bytes"
    chmod 755 "$work/text"
    chmod 644 "$work"/text/*
    mv "$work/text" "data/corpus/$source"
    rm -rf "$work"
    work=''
}

pack_source() { # SOURCE
    local source=$1 corpus=data/corpus/$1 tokens=data/tokens/$1
    say "$source: $(find "$corpus" -type f | wc -l) files, $(find "$corpus" -type f -printf '%s\n' |
        awk '{ sum += $1 } END { printf "%.1f", sum / 1e6 }') MB of text in $corpus"
    [[ ! -f $tokens.bin || ! -f $tokens.idx || $corpus -nt $tokens.idx ]] || return 0
    [[ -x build/floe ]] || fail "build/floe is missing; run tools/setup.sh first"
    mkdir -p data/tokens
    build/floe data pack "$corpus" -o "$tokens"
}

make_source prose "${prose_packages[@]}"
make_source code "${code_packages[@]}"
make_source sql "${sql_packages[@]}"
for source in prose code sql; do pack_source "$source"; done
say "ready: data/tokens/{prose,code,sql}"
