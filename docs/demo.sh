#!/bin/sh
# The main job, as `make demo` runs it: the same commands work by hand, one by one.
#   sh docs/demo.sh FOLDER      (actlas on the PATH)
set -eu
folder=${1:?give a folder for what the demo makes}
store=$folder/python-docs.zarr

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
run() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }
[ -t 1 ] || { say() { printf '\n%s\n' "$1"; }; run() { printf '$ %s\n' "$*"; "$@"; }; }

say "1. Plan and extract: the embedded model over Python's own documentation, two Ray workers"
run actlas extract "$store" --model builtin:actlas-6m --corpus builtin:python-docs \
  --max-tokens 100000 --executor ray --workers 2

say "2. Verify: every byte against its checksum"
run actlas verify "$store" --full

say "3. Look: a document, its tokens, the norm of each block's residual stream"
run actlas show "$store" --doc 3 --pos 17

say "4. What is in the store"
run actlas info "$store"

say "Done. The store is $store: $(du -sh "$store" | cut -f1) of plain Zarr. Next:"
cat <<END
  .venv/bin/python                       to read it yourself:
      import actlas
      store = actlas.open("$store")
      store.activations["resid_post.3"][:10]      10 rows x 256 units
      store.document(3).to_pandas()               its tokens and their norms
      actlas.dask_array(store, "resid_post.3").std(axis=0).compute()
  actlas extract "$folder/language.zarr" --model builtin:actlas-6m --corpus builtin:language
                                         sentences and non-words, for the localizer
  docs/store-format.md                   what lies where in the store
END
