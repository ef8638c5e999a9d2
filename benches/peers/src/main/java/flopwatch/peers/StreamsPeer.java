package flopwatch.peers;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/** The task in Kafka Streams: Processor API, hourly panes in memory, exactly-once v2. */
public final class StreamsPeer {
    private static final Duration HORIZON = Duration.ofHours(2);
    private static final Duration BUCKET = Duration.ofMinutes(5);

    public static void main(String[] arguments) throws InterruptedException {
        Settings settings = Settings.parse(arguments);
        KafkaStreams streams = new KafkaStreams(topology(settings), properties(settings));
        CountDownLatch ended = new CountDownLatch(1);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            ended.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close(Duration.ofSeconds(20));
            ended.countDown();
        }));
        streams.start();
        ended.await();
    }

    private static Properties properties(Settings settings) {
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, settings.group);
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, settings.servers);
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, settings.threads);
        properties.put(StreamsConfig.STATE_DIR_CONFIG, settings.folder);
        properties.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // writes to the changelog once a commit and key instead of once an event
        properties.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 512L << 20);
        properties.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 20_000);
        properties.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        properties.put(StreamsConfig.consumerPrefix("max.poll.records"), 20_000);
        properties.put(StreamsConfig.consumerPrefix("max.partition.fetch.bytes"), 4 << 20);
        properties.put(StreamsConfig.consumerPrefix("fetch.max.bytes"), 64 << 20);
        properties.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        properties.put(StreamsConfig.producerPrefix("batch.size"), 512 << 10);
        properties.put(StreamsConfig.producerPrefix("linger.ms"), 50);
        properties.put(StreamsConfig.producerPrefix("buffer.memory"), 256L << 20);
        return properties;
    }

    private static Topology topology(Settings settings) {
        Topology topology = new Topology();
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        ByteArraySerializer toBytes = new ByteArraySerializer();
        topology.addGlobalStore(
                Stores.keyValueStoreBuilder(
                                Stores.inMemoryKeyValueStore("directory"), Serdes.String(), Serdes.ByteArray())
                        .withLoggingDisabled(),
                "accounts", Serdes.String().deserializer(), bytes, settings.accounts, "directory-reader",
                DirectoryReader::new);
        topology.addSource("usage", bytes, bytes, settings.usage);
        topology.addProcessor("meter", () -> new Meter(settings), "usage");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(
                                Stores.inMemoryKeyValueStore("panes"), Serdes.ByteArray(), Serdes.ByteArray())
                        .withCachingEnabled(),
                "meter");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(
                        Stores.inMemoryKeyValueStore("alerted"), Serdes.String(), Serdes.ByteArray()),
                "meter");
        if (settings.dedup) {
            StoreBuilder<WindowStore<byte[], byte[]>> seen = Stores.windowStoreBuilder(
                    Stores.inMemoryWindowStore("seen", HORIZON.plus(BUCKET), BUCKET, false),
                    Serdes.ByteArray(), Serdes.ByteArray());
            topology.addStateStore(seen, "meter");
        }
        topology.addSink("to-countries", settings.countries, toBytes, toBytes, "meter");
        topology.addSink("alerts", settings.output, toBytes, toBytes, "meter");
        topology.addSource("countries", bytes, bytes, settings.countries);
        topology.addProcessor("country", () -> new Country(settings), "countries");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(
                        Stores.inMemoryKeyValueStore("totals"), Serdes.String(), Serdes.Long()),
                "country");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(
                        Stores.inMemoryKeyValueStore("reports"), Serdes.Integer(), Serdes.Integer()),
                "country");
        topology.addSink("totals-out", settings.output, toBytes, toBytes, "country");
        return topology;
    }

    static final class DirectoryReader implements Processor<String, byte[], Void, Void> {
        private KeyValueStore<String, byte[]> directory;

        @Override
        public void init(ProcessorContext<Void, Void> context) {
            directory = context.getStateStore("directory");
        }

        @Override
        public void process(Record<String, byte[]> record) {
            directory.put(record.key(), record.value());
        }
    }

    /** One usage partition, which has all events of its accounts: dedup, panes, and judgement when an hour closes. */
    static final class Meter implements Processor<byte[], byte[], byte[], byte[]> {
        private static final byte[] SEEN = new byte[0];

        private final Settings settings;
        private final Usage usage = new Usage();
        private final Catalogue catalogue = new Catalogue();
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<String, byte[]> directory;
        private KeyValueStore<byte[], byte[]> panes;
        private KeyValueStore<String, byte[]> alerted;
        private WindowStore<byte[], byte[]> seen;
        /** Closed panes of the last day: derived from the store, so it is not logged. */
        private final Map<String, Day> days = new HashMap<>();
        private long streamTime;
        private int nextClose;

        Meter(Settings settings) {
            this.settings = settings;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            directory = context.getStateStore("directory");
            panes = context.getStateStore("panes");
            alerted = context.getStateStore("alerted");
            if (settings.dedup) {
                seen = context.getStateStore("seen");
            }
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            Settings.first();
            usage.decode(record.value());
            if (seen != null && isDuplicate()) {
                return;
            }
            int hour = usage.hour();
            if (streamTime == 0) {
                nextClose = hour;
            }
            streamTime = Math.max(streamTime, usage.timeNanos);
            byte[] key = ByteBuffer.allocate(4 + usage.account.length)
                    .putInt(hour)
                    .put(usage.bytes, usage.account.offset, usage.account.length)
                    .array();
            byte[] before = panes.get(key);
            long flop = usage.flop(catalogue) + (before == null ? 0 : ByteBuffer.wrap(before).getLong());
            panes.put(key, ByteBuffer.allocate(8).putLong(flop).array());
            while (streamTime - settings.latenessNanos >= nextClose * Usage.HOUR_NANOS) {
                close(nextClose++);
            }
        }

        /** Looks in the event's own bucket alone: exact duplicates carry the time of the original. */
        private boolean isDuplicate() {
            byte[] identity = ByteBuffer.allocate(16)
                    .putLong(usage.identity(0))
                    .putLong(usage.identity(0x5851F42D4C957F2DL))
                    .array();
            long bucket = usage.timeNanos / BUCKET.toNanos() * BUCKET.toMillis();
            if (seen.fetch(identity, bucket) != null) {
                return true;
            }
            seen.put(identity, SEEN, bucket);
            return false;
        }

        private void close(int hour) {
            Map<String, Long> countries = new TreeMap<>();
            byte[] from = ByteBuffer.allocate(4).putInt(hour).array();
            byte[] to = ByteBuffer.allocate(4).putInt(hour + 1).array();
            try (KeyValueIterator<byte[], byte[]> closed = panes.range(from, to)) {
                while (closed.hasNext()) {
                    KeyValue<byte[], byte[]> pane = closed.next();
                    if (ByteBuffer.wrap(pane.key).getInt() != hour) {
                        continue;
                    }
                    String account = new String(pane.key, 4, pane.key.length - 4, StandardCharsets.UTF_8);
                    long flop = ByteBuffer.wrap(pane.value).getLong();
                    judge(account, hour, flop, countries);
                }
            }
            StringBuilder report = new StringBuilder().append(hour);
            countries.forEach((country, sum) -> report.append(',').append(country).append('=').append(sum));
            send("to-countries", report.toString());
            forget(hour - 24);
        }

        private void judge(String account, int hour, long flop, Map<String, Long> countries) {
            byte[] entry = directory.get(account);
            Owner owner = entry == null ? Owner.UNKNOWN : Owner.decode(entry);
            countries.merge(owner.country(), flop, Long::sum);
            Day day = days.computeIfAbsent(account, name -> new Day());
            day.set(hour, flop);
            long sum = day.sum(hour);
            if (owner.foreign() && sum >= settings.threshold && alerted.get(account) == null) {
                alerted.put(account, SEEN);
                send("alerts", Settings.line("account", account, hour, sum));
            }
        }

        private void forget(int hour) {
            byte[] from = ByteBuffer.allocate(4).putInt(hour).array();
            byte[] to = ByteBuffer.allocate(4).putInt(hour + 1).array();
            try (KeyValueIterator<byte[], byte[]> old = panes.range(from, to)) {
                while (old.hasNext()) {
                    byte[] key = old.next().key;
                    if (ByteBuffer.wrap(key).getInt() == hour) {
                        panes.delete(key);
                    }
                }
            }
        }

        private void send(String sink, String line) {
            byte[] value = line.getBytes(StandardCharsets.UTF_8);
            context.forward(new Record<>(null, value, usage.timeNanos / 1_000_000), sink);
        }
    }

    /** The last 24 closed hours of an account. */
    static final class Day {
        private final int[] hours = new int[24];
        private final long[] sums = new long[24];

        void set(int hour, long sum) {
            hours[hour % 24] = hour;
            sums[hour % 24] = sum;
        }

        long sum(int last) {
            long sum = 0;
            for (int index = 0; index < 24; index++) {
                sum += hours[index] > last - 24 ? sums[index] : 0;
            }
            return sum;
        }
    }

    /** An hour is judged when every usage partition has reported it. */
    static final class Country implements Processor<byte[], byte[], byte[], byte[]> {
        private final Settings settings;
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<String, Long> totals;
        private KeyValueStore<Integer, Integer> reports;

        Country(Settings settings) {
            this.settings = settings;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            totals = context.getStateStore("totals");
            reports = context.getStateStore("reports");
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            String[] parts = new String(record.value(), StandardCharsets.UTF_8).split(",");
            int hour = Integer.parseInt(parts[0]);
            for (int index = 1; index < parts.length; index++) {
                String[] pair = parts[index].split("=");
                String key = key(pair[0], hour);
                Long before = totals.get(key);
                totals.put(key, (before == null ? 0 : before) + Long.parseLong(pair[1]));
            }
            Integer before = reports.get(hour);
            int count = before == null ? 1 : before + 1;
            reports.put(hour, count);
            if (count == settings.partitions) {
                judge(hour, record.timestamp());
            }
        }

        private void judge(int hour, long timestamp) {
            Map<String, Long> sums = new TreeMap<>();
            try (KeyValueIterator<String, Long> all = totals.all()) {
                while (all.hasNext()) {
                    KeyValue<String, Long> total = all.next();
                    String[] parts = total.key.split("@");
                    int of = Integer.parseInt(parts[1]);
                    if (of > hour - 24 && of <= hour) {
                        sums.merge(parts[0], total.value, Long::sum);
                    }
                }
            }
            sums.forEach((country, sum) -> {
                String line = Settings.line("country", country, hour, sum);
                byte[] value = line.getBytes(StandardCharsets.UTF_8);
                context.forward(new Record<>(null, value, timestamp), "totals-out");
            });
        }

        private static String key(String country, int hour) {
            return country + "@" + hour;
        }
    }
}
