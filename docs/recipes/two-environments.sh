#!/bin/bash
# Three experts here, one that needs another environment (a compiled kernel, an old library) there: each environment writes
# a store of its own from the same images, on one machine or on two, and the stores become one.
set -euo pipefail

CONFIG=${CONFIG:-my.yaml}                  # names all four experts
OTHER=${OTHER:-mamba}                      # the one that the other environment runs
HERE=${HERE:-.venv}
THERE=${THERE:-.venv-mamba}
STORES=${STORES:-/shared}

"$HERE/bin/python" pipeline.py extract --config "$CONFIG" --store "$STORES/three.store" \
    --expert hat-l --expert drct-l --expert grl-b
"$THERE/bin/python" pipeline.py experts check "$OTHER.yaml"
"$THERE/bin/python" pipeline.py extract --config "$CONFIG" --store "$STORES/$OTHER.store" --expert "$OTHER"

# Hard links where both lie on one disk: neither time nor space. Images that differ in one byte are refused by name.
"$HERE/bin/python" pipeline.py store merge "$STORES/three.store" "$STORES/$OTHER.store" \
    --output "$STORES/df2k.store" --complete
"$HERE/bin/python" pipeline.py store verify "$STORES/df2k.store"
