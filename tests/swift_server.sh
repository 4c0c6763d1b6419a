#!/bin/bash
# OpenStack Swift with its S3 interface, a full server from Debian's packages, on loopback, until it is stopped:
#   apt-get install --no-install-recommends swift-proxy swift-account swift-container swift-object memcached
#   tests/swift_server.sh DIR     (as root: it replaces /etc/swift/*.conf; DIR is on a file system with xattrs)
# Then the tests run against it with what it prints.
set -euo pipefail

DIR=$(realpath -m "${1:?a folder for its disk}")
PORT=${PORT:-18080}
KEY=test:tester SECRET=testing

rm -rf "$DIR"
mkdir -p "$DIR/disk/d1" "$DIR/run"
cat > /etc/swift/swift.conf <<END
[swift-hash]
swift_hash_path_suffix = loopback
[storage-policy:0]
name = gold
default = yes
END

cd "$DIR"
for server in account:6202 container:6201 object:6200; do
    kind=${server%:*} port=${server#*:}
    swift-ring-builder "$kind.builder" create 4 1 0 > /dev/null
    swift-ring-builder "$kind.builder" add "r1z1-127.0.0.1:$port/d1" 1 > /dev/null
    swift-ring-builder "$kind.builder" rebalance > /dev/null
    cp "$kind.ring.gz" /etc/swift/
    cat > "/etc/swift/$kind-server.conf" <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
user = $(id -un)
devices = $DIR/disk
mount_check = false
workers = 1
[pipeline:main]
pipeline = $kind-server
[app:$kind-server]
use = egg:swift#$kind
[$kind-updater]
[$kind-replicator]
[$kind-auditor]
END
done
cat > /etc/swift/proxy-server.conf <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $PORT
user = $(id -un)
workers = 2
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache listing_formats bulk s3api tempauth copy slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_${KEY/:/_} = $SECRET .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:11212
$(for filter in catch_errors gatekeeper proxy_logging listing_formats bulk copy slo dlo; do
    printf '[filter:%s]\nuse = egg:swift#%s\n' "${filter/proxy_logging/proxy-logging}" "$filter"
done)
END

trap 'kill $(jobs -p)' EXIT
memcached -u "$(id -un)" -l 127.0.0.1 -p 11212 &
for kind in account container object proxy; do
    "swift-$kind-server" "/etc/swift/$kind-server.conf" > "$DIR/run/$kind.log" 2>&1 &
done
until (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do sleep 0.1; done
echo "CHAMPIONSHIP_S3_ENDPOINT=http://127.0.0.1:$PORT AWS_ACCESS_KEY_ID=$KEY AWS_SECRET_ACCESS_KEY=$SECRET"
wait -n
