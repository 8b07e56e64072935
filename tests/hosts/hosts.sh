#!/usr/bin/env bash
# Hosts on one machine that share nothing but a network: each has a network, mounts, processes and a name of its own.
#
#   hosts.sh up DIR NAME...      a switch, this machine at it as 10.77.0.1, and the hosts as 10.77.0.2, .3, …
#   hosts.sh run DIR NAME CMD... CMD as that host, in /mnt; sees the folders below and, read-only, DIR/image as /mnt/image
#   hosts.sh off DIR NAME        power off: first nothing answers, then everything on the host is dead
#   hosts.sh down DIR            all off; nothing is left of them
#
# DIR/NAME has a host's own /tmp, /mnt and ~/.cache. HIDDEN is a folder that hosts must not see (the checkout), VENV one
# below it, perhaps, that they do. Needs root and iproute2.
set -euo pipefail

switch=allmrec-switch
at_switch() { ip netns exec "$switch" ip link "$@"; }

up() {
  local dir=$1 number=1 host; shift
  down "$dir"
  mkdir -p "$dir"
  ip netns add "$switch"
  at_switch add bridge type bridge
  at_switch set bridge up
  ip link add allmrec-here type veth peer name here netns "$switch"
  at_switch set here master bridge up
  ip address add 10.77.0.1/24 dev allmrec-here
  ip link set allmrec-here up
  echo "127.0.0.1 localhost" >"$dir/hosts"
  for host; do
    number=$((number + 1))
    ip netns add "allmrec-$host"
    ip link add cable netns "allmrec-$host" type veth peer name "$host" netns "$switch"
    ip netns exec "allmrec-$host" ip link set lo up
    ip netns exec "allmrec-$host" ip address add "10.77.0.$number/24" dev cable
    ip netns exec "allmrec-$host" ip link set cable up
    at_switch set "$host" master bridge
    echo "10.77.0.$number $host" >>"$dir/hosts"
  done
}

run() {
  local dir=$1 host=$2; shift 2
  rm -rf "${dir:?}/$host"
  mkdir -p "$dir/$host"/{tmp,mnt/image,cache,venv}
  at_switch set "$host" up
  echo $$ >"$dir/$host.pid" # of unshare in a moment, which takes the host's processes along
  exec ip netns exec "allmrec-$host" unshare --mount --uts --pid --fork --kill-child --mount-proc \
    bash "$0" boot "$dir" "$host" "$@"
}

boot() { # inside the host
  local dir=$1 host=$2; shift 2
  hostname "$host"
  mount --make-rprivate /
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  mkdir -p ~/.cache
  mount --bind "$dir/$host/cache" ~/.cache
  mount --bind "$dir/hosts" /etc/hosts
  mount --bind "$dir/$host/mnt" /mnt
  mount --bind -o ro "$dir/image" /mnt/image
  if [ -n "${HIDDEN:-}" ]; then
    mount --bind "$VENV" "$dir/$host/venv"
    mount -t tmpfs tmpfs "$HIDDEN"
    mkdir -p "$VENV"
    mount --bind "$dir/$host/venv" "$VENV"
  fi
  mount --bind "$dir/$host/tmp" /tmp # last: DIR may be below it
  cd /mnt
  exec "$@"
}

off() {
  local pid
  at_switch set "$2" down
  pid=$(cat "$1/$2.pid" 2>/dev/null) || return 0
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1/$2.pid"
}

down() {
  local file space
  for file in "$1"/*.pid; do
    [ ! -e "$file" ] || off "$1" "$(basename "$file" .pid)" 2>/dev/null || true
  done
  for space in $(ip netns list | awk '/^allmrec-/ { print $1 }'); do ip netns delete "$space"; done
  ip link delete allmrec-here 2>/dev/null || true
}

verb=$1
shift
"$verb" "$@"
