#!/bin/sh
# All of actlas in a few minutes. `make demo` runs this; the same commands work by hand, one by one.
#   sh docs/demo.sh FOLDER      (actlas on the PATH)
set -eu
folder=${1:?give a folder for what the demo makes}
store=$folder/python-docs.zarr
language=$folder/language.zarr

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
run() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }
[ -t 1 ] || { say() { printf '\n%s\n' "$1"; }; run() { printf '$ %s\n' "$*"; "$@"; }; }

say "1. Plan and extract: the embedded model over Python's own documentation"
run actlas extract "$store" --model builtin:actlas-6m --corpus builtin:python-docs \
  --max-tokens 100000

say "2. Verify: every byte against its checksum"
run actlas verify "$store" --full

say "3. Look: a document, its tokens, the norm of each block's residual stream"
run actlas show "$store" --doc 3 --pos 17

say "4. Localize: which units prefer sentences (S) to strings of non-words (N)?"
run actlas extract "$language" --model builtin:actlas-6m --corpus builtin:language
run actlas localize "$language" --contrast S:N --out "$folder/localizer"

say "5. Ablate: what does the model lose without them, and without as many random ones?"
run actlas ablate builtin:actlas-6m --mask "$folder/localizer/mask.json" \
  --corpus builtin:language --out "$folder/ablation"
run actlas ablate builtin:actlas-6m --mask "$folder/localizer/mask.json" \
  --corpus builtin:python-docs --max-tokens 5000 --new-tokens 20 --out "$folder/ablation-docs"

say "6. Train a sparse autoencoder on shuffled batches of the store"
run actlas sae train "$store" --hookpoint resid_post.3 --out "$folder/docs-sae" \
  --batch-size 1024 --steps 1000

say "7. Encode every token with it, and index its features"
run actlas sae encode "$store" --sae "$folder/docs-sae"
run actlas sae index "$store" --sae docs-sae

say "8. Three of its features: the tokens on which each is most active"
run actlas contexts "$store" --sae docs-sae --some 3 -k 5 --words 8 --distinct
run actlas contexts "$store" --sae docs-sae --some 12 --html "$folder/features.html"

say "9. Verify again: every byte of the store and of its features"
run actlas verify "$store" --full
run actlas info "$store"

say "Done. The store is $store: $(du -sh "$store" | cut -f1) of plain Zarr. Results to look at:"
cat <<END
  $folder/localizer/brain_map.png        every unit's t; layers.png, t_histogram.png, units.csv
  $folder/ablation/ablation.png          and samples.txt
  $folder/docs-sae/curves.png            and metrics.json
  $folder/features.html                  twelve features in their contexts
  .venv/bin/python                       to read it yourself:
      import actlas
      store = actlas.open("$store")
      store.activations["resid_post.3"][:10]      10 rows x 256 units
      store.document(3).to_pandas()               its tokens and their norms
      store.features("docs-sae").to_pandas()      every feature: count, density, mean, max
      for x, rows in actlas.batches(store, "resid_post.3"): ...
  docs/README.md                         what everything means
END
