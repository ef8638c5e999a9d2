#!/usr/bin/env bash
# Shows that the chaos suite sees what it must: each mistake of plants/*.patch is put into a copy of
# the sources, and the short form of the suite must fail on it with records that are lost or
# repeated, or with a process that refuses its own state. First the copy without any must pass,
# unless NAMEs are given.
#
#   tests/chaos/plants.sh [NAME...]     those of plants/, without .patch; all by default
#
# What strikes where is up to the machine, so a mistake may hide from one seed: SEEDS (default 4)
# are tried. The copy and its binaries stay in target/plants, away from those that are used.
set -euo pipefail
cd "$(dirname "$0")/../.."
plants=("$@")
if [ "${#plants[@]}" -eq 0 ]; then
    for patch in tests/chaos/plants/*.patch; do plants+=("$(basename "$patch" .patch)"); done
fi

# what ends transactions half way, often
export CHAOS_FAULTS=${CHAOS_FAULTS:-Killed,KilledRestoring,Zombie,BrokerKilled,LineCut}
target=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TARGET_DIR=$target/plants
mkdir -p "$CARGO_TARGET_DIR"
for kafka in "$target"/kafka-*; do
    if [ -d "$kafka" ]; then ln -sfn "$kafka" "$CARGO_TARGET_DIR/"; fi
done
copy=$CARGO_TARGET_DIR/copy
# what does not depend on our sources need not be compiled again
if [ -d "$target/debug/deps" ] && [ ! -d "$CARGO_TARGET_DIR/debug" ]; then
    mkdir -p "$CARGO_TARGET_DIR/debug"
    cp -al "$target/debug/"{deps,build,.fingerprint} "$CARGO_TARGET_DIR/debug/"
    rm -rf "$CARGO_TARGET_DIR/debug/"{deps/*flopwatch*,deps/chaos-*,build/flopwatch-*,.fingerprint/flopwatch-*}
fi

build() { # build PATCH...: the suite with these in it
    rm -rf "$copy"
    mkdir -p "$copy"
    # with new times, so that cargo compiles what a patch before has changed
    tar --exclude=./target --exclude=./.git -cf - . | tar -xmf - -C "$copy"
    local patch
    for patch in "$@"; do patch -s -F0 -d "$copy" -p1 <"tests/chaos/plants/$patch.patch"; done
    (cd "$copy" && cargo test --quiet --locked --test chaos --no-run)
}

run() { # run SEED LOG: its exit code is the suite's
    (cd "$copy" && CHAOS_SEED=$1 cargo test --quiet --locked --test chaos -- \
        --nocapture --exact whatever_fails_the_outputs_equal_a_clean_replay) >"$2" 2>&1
}

# why a run failed, when it is what the suite is for
evidence() {
    grep -E 'lost [1-9]|repeated [1-9]|differ, CHAOS_|error: (state|internal): |invariant' "$1"
}

if [ "$#" -eq 0 ]; then
    build
    log=$CARGO_TARGET_DIR/none.log
    run 1 "$log" || {
        cat "$log"
        echo "plants.sh: fails with nothing planted" >&2
        exit 1
    }
    echo "nothing planted: passes"
fi

unseen=()
for plant in "${plants[@]}"; do
    build "$plant"
    seen=
    for seed in $(seq 1 "${SEEDS:-4}"); do
        log=$CARGO_TARGET_DIR/$plant-$seed.log
        if run "$seed" "$log"; then
            echo "$plant: hides from seed $seed"
        elif found=$(evidence "$log"); then
            echo "$plant: seen with seed $seed:"
            head -n 8 <<<"$found" | cut -c 1-160 | sed 's/^/    /'
            seen=yes
            break
        else
            echo "$plant: seed $seed fails for another reason, see $log"
        fi
    done
    [ -n "$seen" ] || unseen+=("$plant")
done
if [ "${#unseen[@]}" -gt 0 ]; then
    echo "plants.sh: never seen: ${unseen[*]}" >&2
    exit 1
fi
