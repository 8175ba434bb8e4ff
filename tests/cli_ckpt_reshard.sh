#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# floe ckpt reshard: other files with the same content, whole or not at all; a run goes on from them with the same bits.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 12
sed -i -e 's/every: 20, keep: 3/every: 6, keep: 0/' -e 's/eval: {every: 50/eval: {every: 0/' c.yaml
expect 0 "$floe" train c.yaml -n 2 -o run -q

manifest_part() { # CKPT KEY: that line of the manifest
    grep "^\"$2\":" "$1/MANIFEST.json"
}

# equal_content CKPT FILES: of run@9, in so many files whose numbers of values differ by one at most
equal_content() {
    expect 0 "$floe" ckpt verify "$1"
    [ "$(grep -c 'bytes, .*: whole$' out.txt)" = "$2" ] || { cat out.txt; fail "$1 has not $2 files"; }
    expect 0 "$floe" ckpt diff run@9 "$1"
    for key in step permanent states digest record; do
        [ "$(manifest_part "$1" $key)" = "$(manifest_part "$(checkpoint run 9)" $key)" ] || fail "$1: another $key"
    done
    grep -o '"elements":[0-9]*' "$1/MANIFEST.json" | awk -F: -v files="$2" '
        NR == 1 || $2 < least { least = $2 } $2 > most { most = $2 }
        END { exit !(NR == files && most - least <= 1 && least > 0) }' || fail "$1: files of different size"
}

for files in 1 3 8; do
    expect 0 "$floe" ckpt reshard run@9 --files $files -o files-$files
    says out.txt "^files-$files: $files files? from 2, .* parameters"
    equal_content files-$files $files
done
expect 0 "$floe" ckpt reshard files-8 --files 2 --compress zlib -o zlib
says zlib/MANIFEST.json '^"compress":"zlib"'
equal_content zlib 2
expect 0 "$floe" ckpt reshard zlib --files 5 -o zlib-5
says zlib-5/MANIFEST.json '^"compress":"zlib"'
equal_content zlib-5 5
expect 0 "$floe" ckpt reshard zlib --files 1 --compress none -o plain
says plain/MANIFEST.json '^"compress":"none"'
equal_content plain 1
for name in files-1 plain; do grep -o '"segments":.*' $name/MANIFEST.json >$name.segments; done
same "the segments there and back again" files-1.segments plain.segments

# Weights alone.
expect 0 "$floe" ckpt export run@9 --dtype f32 -o hf
expect 0 "$floe" ckpt import hf -o weights
expect 0 "$floe" ckpt reshard weights --files 4 -o weights-4
expect 0 "$floe" ckpt diff weights weights-4
expect 0 "$floe" ckpt verify weights-4

# A run goes on from them, and says what it read: as many bytes as there are where the ranks share the state out.
for files in 1 8; do
    expect 0 "$floe" train c.yaml -n 2 -o fork-$files --fork files-$files
    says out.txt "^resume    files-$files: step 9, .* forked; read [0-9.]+ [KM]iB of [0-9.]+ [KM]iB .one rank [0-9.]+ [KM]iB at most. in [0-9.]+ s"
    expect 0 "$floe" ckpt diff run@12 fork-$files@12
    sed -nE 's/.*"checkpoint_bytes":([0-9]+),"read_bytes":([0-9]+),"rank_read_bytes":([0-9]+),.*/\1 \2 \3/p' fork-$files/metrics.jsonl >read.txt
    held=$(cat files-$files/*.h5 | wc -c)
    awk -v held="$held" 'END { exit !(NR == 1 && $1 == held && $2 >= held / 2 && $2 <= 1.5 * held && $3 <= 0.8 * held) }' read.txt ||
        fail "read of $held bytes: $(cat read.txt)"
done
expect 0 "$floe" train c.yaml -n 1 -o fork-alone --fork plain parallel.ep=1 -q
close_losses 1e-5 fork-1 fork-alone

# What cannot be.
refused() { # CODE PATTERN ARGUMENTS…: says why, and leaves nothing
    code=$1
    pattern=$2
    shift 2
    expect "$code" "$floe" ckpt reshard "$@" -o absent/new
    says err.txt "$pattern"
    [ -z "$(ls -A absent 2>/dev/null)" ] || fail "something is left in absent"
}
for files in 0 100001; do refused 2 'give --files N, from 1 to 100000' run --files $files; done
refused 2 'files -3: expected a whole number' run --files -3
refused 2 'give --files N' run
refused 2 'make at most [0-9]+ files, not 90000' run --files 90000
refused 2 'no checkpoint of step 7' run@7 --files 2
refused 2 'No such file' nowhere --files 2
expect 2 "$floe" ckpt reshard run --files 2
says err.txt '.o CKPT is missing'
expect 2 "$floe" ckpt reshard run --files 2 -o files-1
says err.txt 'files-1: is there already'
cp -r "$(checkpoint run 9)" damaged
shard=$(cd damaged && ls ./*.h5 | tail -1)
printf '\377' | dd of="damaged/$shard" bs=1 seek=30001 conv=notrunc 2>/dev/null
refused 4 "${shard#./}: damaged: .*(master|m|v) of .*, at byte [0-9]+" damaged --files 1
trap '' XFSZ
ulimit -f 300
refused 1 'absent/new was not written: .*do not fit' run@9 --files 1
exit 0
