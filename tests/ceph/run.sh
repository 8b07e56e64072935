#!/usr/bin/env bash
# Run a command against a real S3 store: Ceph RADOS Gateway, one monitor and one in-memory OSD on loopback.
#
#   tests/ceph/run.sh .venv/bin/pytest -m s3
#
# Installs Ceph from Debian where it is missing (as root). The command finds the store in ALLMREC_TEST_S3_ENDPOINT
# and its keys in the AWS_* variables; everything is stopped and removed when it ends.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }

if ! type -P radosgw ceph-mon ceph-osd ceph >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends radosgw ceph-mon ceph-osd >/dev/null
fi

free_port() { # prints a port of 127.0.0.1 that nothing listens on
    local port
    while port=$(shuf -n 1 -i 20000-32000); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

home=$(mktemp -d "${TMPDIR:-/tmp}/ceph-XXXXXX")
stop() {
    local pids
    pids=$(tail -qn +1 "$home"/*.pid 2>/dev/null | tr -cs '0-9' ' ')
    # shellcheck disable=SC2086
    kill $pids 2>/dev/null || true
    for _ in $(seq 100); do
        # shellcheck disable=SC2086
        kill -0 $pids 2>/dev/null || break
        sleep 0.1
    done
    rm -rf "$home"
}
trap stop EXIT
trap 'exit 130' INT TERM

gateway=http://127.0.0.1:$(free_port)
monitor=v2:127.0.0.1:$(free_port)
cluster=$(cat /proc/sys/kernel/random/uuid)
export CEPH_CONF=$home/ceph.conf
cat >"$CEPH_CONF" <<EOF
[global]
    fsid = $cluster
    mon_host = $monitor
    mon_initial_members = a
    public_addr = 127.0.0.1
    ms_bind_msgr1 = false
    # Nobody else is on this loopback port.
    auth_cluster_required = none
    auth_service_required = none
    auth_client_required = none
    ms_mon_cluster_mode = crc
    ms_mon_service_mode = crc
    ms_mon_client_mode = crc
    keyring = $home/keyring
    mon_data = $home/mon
    osd_data = $home/osd
    run_dir = $home
    pid_file = $home/\$name.pid
    admin_socket = $home/\$name.\$pid.asok
    log_file = $home/\$name.log
    mon_cluster_log_file = $home/cluster.log
    crash_dir = $home
    # One copy of everything, in memory.
    osd_objectstore = memstore
    memstore_device_bytes = 2147483648
    mon_allow_pool_size_one = true
    osd_pool_default_size = 1
    osd_pool_default_min_size = 1
    osd_pool_default_pg_num = 8
    osd_pool_default_pgp_num = 8
    osd_pool_default_pg_autoscale_mode = off
    osd_crush_chooseleaf_type = 0
    mon_data_avail_crit = 1
    # The gateway's object classes.
    osd_class_load_list = *
    osd_class_default_list = *
    # Nagle's algorithm would hold answers back for 40 ms.
    rgw_frontends = beast endpoint=${gateway#http://} tcp_nodelay=1
EOF
mkdir "$home/mon" "$home/osd"

ceph-authtool -C "$home/keyring" -g -n mon. --cap mon 'allow *' >/dev/null
monmaptool --create --fsid "$cluster" --addv a "[$monitor]" "$home/monmap" >/dev/null
ceph-mon -i a --mkfs --monmap "$home/monmap" --keyring "$home/keyring"
ceph-mon -i a
osd=$(cat /proc/sys/kernel/random/uuid)
ceph osd new "$osd" >/dev/null
ceph-osd -i 0 --mkfs --osd-uuid "$osd" 2>/dev/null
ceph-osd -i 0 >/dev/null 2>&1
radosgw -n client.rgw

export ALLMREC_TEST_S3_ENDPOINT=$gateway AWS_ACCESS_KEY_ID=allmrec-test AWS_SECRET_ACCESS_KEY=allmrec-secret
radosgw-admin user create --uid=test --display-name=test \
    --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY" >/dev/null
for attempt in $(seq 600); do
    (: <"/dev/tcp/127.0.0.1/${gateway##*:}") 2>/dev/null && break
    [ "$attempt" -lt 600 ] || { echo "Ceph did not come up:" >&2; tail -n 20 "$home"/*.log >&2; exit 1; }
    sleep 0.1
done
echo "Ceph RADOS Gateway answers at $gateway after $SECONDS s"
"$@"
