#!/usr/bin/env bash
# One Kafka broker of the version that we test against, in the foreground until interrupted.
#
#   PORT=9092 CONTROLLER_PORT=9093 DATA=dir HEAP=768m tests/support/kafka/start.sh
#
# KAFKA_VERSION=4.1.1 takes another version.
# PROPERTIES=file adds to the broker's settings, FORMAT='...' to the arguments that format its storage
# (`--add-scram ...`). The jars come from Maven Central once, into target/. DATA is made when it is not there, and is a
# temporary directory, removed at the end, when it is not given. With UNTIL_EOF=1 the broker ends
# with standard input: a test that holds the other end takes it along, however it ends. With
# PROXIED_PORT a second listener there sends its clients on to ADVERTISED_PORT, where a proxy of the
# test listens.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
pinned=$(sed -nE 's:.*<kafka.version>([0-9.]+)</kafka.version>.*:\1:p' "$here/pom.xml")
version=${KAFKA_VERSION:-$pinned}
libs="${CARGO_TARGET_DIR:-$root/target}/kafka-$version/libs"

for tool in java mvn flock; do
    command -v "$tool" >/dev/null || {
        echo "start.sh: $tool is missing: run \`make setup\`" >&2
        exit 1
    }
done

# several test binaries may come here at once; a complete fetch leaves a mark
mkdir -p "$libs"
exec 9>"$libs/.lock"
flock 9
if [[ ! -e "$libs/.complete" ]]; then
    echo "start.sh: fetching Kafka $version" >&2
    mvn -q -B -f "$here/pom.xml" -Dkafka.version="$version" dependency:copy-dependencies \
        -DoutputDirectory="$libs" >&2
    touch "$libs/.complete"
fi
flock -u 9
exec 9>&-

port=${PORT:-9092}
controller=${CONTROLLER_PORT:-$((port + 1))}
temporary=
if [[ -z "${DATA:-}" ]]; then
    DATA=$(mktemp -d "${TMPDIR:-/tmp}/flopwatch-kafka.XXXXXX")
    temporary=$DATA
fi
mkdir -p "$DATA"
proxied=${PROXIED_PORT:+,PROXIED://127.0.0.1:$PROXIED_PORT}
advertised=${PROXIED_PORT:+,PROXIED://127.0.0.1:${ADVERTISED_PORT:-$PROXIED_PORT}}
cat >"$DATA/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller$proxied
advertised.listeners=PLAINTEXT://127.0.0.1:$port$advertised
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs=$DATA/logs
# a missing topic must show
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# no waiting for members that will not come
group.initial.rebalance.delay.ms=0
# a dead producer's transaction ends soon after its timeout
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
PROPERTIES
# the later of two settings counts
if [[ -n "${PROPERTIES:-}" ]]; then cat "$PROPERTIES" >>"$DATA/server.properties"; fi

java_options=(-Xms128m "-Xmx${HEAP:-768m}" -XX:+UseSerialGC -cp "$libs/*"
    -Dorg.slf4j.simpleLogger.defaultLogLevel="${LOG_LEVEL:-error}")
if [[ ! -e "$DATA/logs/meta.properties" ]]; then
    read -ra format <<<"${FORMAT:-}"
    java "${java_options[@]}" -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format \
        --cluster-id MkU3OEVBNTcwNTJENDM2Qg --config "$DATA/server.properties" "${format[@]}" >&2
fi
echo "start.sh: Kafka $version on 127.0.0.1:$port, data in $DATA" >&2
java "${java_options[@]}" kafka.Kafka "$DATA/server.properties" </dev/null &
broker=$!
echo "$broker" >"$DATA/pid"
finish() {
    kill "$broker" 2>/dev/null || true
    wait "$broker" || true
    if [[ -n "$temporary" ]]; then rm -rf "$temporary"; fi
}
trap finish EXIT
trap 'exit 0' INT TERM
if [[ -n "${UNTIL_EOF:-}" ]]; then
    cat >/dev/null
else
    wait "$broker"
fi
