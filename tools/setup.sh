#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs from Debian's packages what floe needs and this machine lacks, and builds build/floe.
# usage: tools/setup.sh [--tests]      --tests: with the tests and their packages, warnings as errors
# FLOE_SKIP_APT=1: install nothing, look for no package; what is missing then shows in the build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(gcc g++ libc6-dev cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev zlib1g-dev libjansson-dev
    libfyaml-dev libsentencepiece-dev libpcre2-dev)
options=()
case ${1-} in
'') ;;
--tests)
    packages+=(libcmocka-dev procps)
    options=(-DFLOE_TESTS=ON -DFLOE_WERROR=ON)
    ;;
*)
    echo "usage: tools/setup.sh [--tests]" >&2
    exit 2
    ;;
esac

say() { printf 'setup     %s\n' "$*"; }
fail() {
    printf 'setup.sh: error: %s\n' "$*" >&2
    exit 1
}

missing_packages() {
    local installed name
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
    for name in "${packages[@]}"; do
        grep -qx "installed $name" <<<"$installed" || echo "$name"
    done
}

# Packages' files must be readable by all, whatever the caller's umask; apt must not eat the caller's input.
as_root() (
    umask 022
    if [[ $(id -u) == 0 ]]; then
        "$@" </dev/null
    else
        sudo "$@" </dev/null
    fi
)

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    [[ $(id -u) == 0 ]] || command -v sudo >/dev/null ||
        fail "missing: ${missing[*]}; there is no sudo here: let root run apt-get install ${missing[*]}, then run this again"
    say "installing Debian packages: ${missing[*]}"
    as_root apt-get update -qq >/dev/null || fail "apt-get update failed; look at the network and at /etc/apt/sources.list"
    local log
    log=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "${missing[@]}" 2>&1) || {
        printf '%s\n' "$log" >&2
        fail "apt-get install failed (see above); look at the network and at /etc/apt/sources.list, then run this again"
    }
}

cached() { # NAME: its value in the build folder's cache
    sed -n "s/^$1:[A-Z]*=//p" build/CMakeCache.txt
}

# Options once given stay: a plain set-up after --tests builds the tests too instead of building everything twice.
configure() {
    if [[ -f build/CMakeCache.txt && $(cached CMAKE_HOME_DIRECTORY) != "$PWD" ]]; then
        say "build/ was made from $(cached CMAKE_HOME_DIRECTORY): removed"
        rm -rf build
    fi
    local generator='Unix Makefiles' log
    if [[ ! -f build/build.ninja && ! -f build/Makefile ]]; then
        [[ ${#options[@]} -gt 0 ]] || options=(-DFLOE_TESTS=OFF)
        command -v ninja >/dev/null && generator=Ninja
        options+=(-G "$generator" -DCMAKE_BUILD_TYPE=Release)
    elif [[ ${#options[@]} == 0 || ($(cached FLOE_TESTS) == ON && $(cached FLOE_WERROR) == ON) ]]; then
        return # the build itself looks whether anything else changed
    fi
    log=$(cmake -S . -B build "${options[@]}" 2>&1) || {
        printf '%s\n' "$log" >&2
        fail "cmake could not configure build/ (see above); if the folder was made by other tools, remove it and try again"
    }
}

build() {
    local log=build/build.log
    if ! cmake --build build --parallel "$(nproc)" >"$log" 2>&1; then
        grep -E -A 8 'error|FAILED|undefined reference' "$log" | head -60 >&2
        fail "the build failed; all of its output is in $log"
    fi
}

if [[ ${FLOE_SKIP_APT-} != 1 ]]; then
    command -v dpkg-query >/dev/null || fail "this is no Debian: install ${packages[*]} by your system's means, then set FLOE_SKIP_APT=1"
    install_packages
fi
configure
say "building build/floe"
build
say "ready: build/floe ($(build/floe version | head -1))"
