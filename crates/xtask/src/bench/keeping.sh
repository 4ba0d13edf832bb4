
# Perennial, for the harness above: the tree is /t of a container, and what has changed since the last save is written
# through the container's union before each save (untimed), as a session would. Character devices 0:0 are left out: in a
# container a deleted file is deleted. Two rows: the generation committed, and committed and sealed.
_per() { "$PERENNIAL" --root "$STORE/root" "$@"; }
_per_init() {
  mkdir -p box/bin box/t && cp "$BUSYBOX" box/bin/busybox && ln -sf busybox box/bin/sh || return 1
  _per image import rootfs:box box > /dev/null || return 1
  _per create c --image box --keep 100 --seal never -- /bin/sh -c 'trap "exit 0" TERM; while :; do /bin/busybox sleep 1000 & wait; done' > /dev/null
}
_per_prep() {
  _per start c --detach > /dev/null || return 1
  M=$(_per --json inspect c | python3 -c 'import json, sys; print(json.load(sys.stdin)["run"]["merged"])')
  rsync -aHAXS --no-devices --numeric-ids --delete "$SRC"/ "$M"/t/
}
_per_restore() { rmdir "$DST"; _per cp "c@$((GEN+1)):/t" "$DST" > /dev/null; }

perennial_init()         { _per_init; }
perennial_prep()         { _per_prep; }
perennial_save()         { _per stop c > /dev/null; }
perennial_restore()      { _per_restore; }
perennial_seal_init()    { _per_init; }
perennial_seal_prep()    { _per_prep; }
perennial_seal_save()    { _per stop c > /dev/null && _per seal c > /dev/null; }
perennial_seal_restore() { _per_restore; }
TOOLS="perennial perennial_seal $TOOLS"
