package flopwatch.peers;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.SerializableTimestampAssigner;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.serialization.SimpleStringSchema;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.api.java.tuple.Tuple5;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.flink.util.OutputTag;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/** The task in Flink: DataStream, hourly panes by hand, heap state, exactly-once. */
public final class FlinkPeer {
    /** Country, hour, GFLOP of one account in that hour. */
    private static final OutputTag<Tuple3<String, Integer, Long>> PANES =
            new OutputTag<>("panes", Types.TUPLE(Types.STRING, Types.INT, Types.LONG));

    public static void main(String[] arguments) throws Exception {
        Settings settings = Settings.parse(arguments);
        StreamExecutionEnvironment environment = environment(settings);
        SingleOutputStreamOperator<String> alerts = usage(environment, settings, (event, recorded) -> event.f3)
                .keyBy(event -> event.f0, Types.STRING)
                .process(new Accounts(settings))
                .returns(Types.STRING)
                .name("accounts");
        DataStream<String> totals = alerts.getSideOutput(PANES)
                .keyBy(pane -> pane.f0, Types.STRING)
                .process(new Countries())
                .returns(Types.STRING)
                .name("countries");
        alerts.union(totals).sinkTo(sink(settings)).name("output");
        environment.execute("flopwatch peer");
    }

    static StreamExecutionEnvironment environment(Settings settings) {
        Configuration configuration = new Configuration();
        configuration.set(StateBackendOptions.STATE_BACKEND, "hashmap");
        configuration.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        configuration.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, "file://" + settings.folder);
        // a failure must show, not be tried again inside a measurement
        configuration.set(RestartStrategyOptions.RESTART_STRATEGY, "disable");
        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.createLocalEnvironment(settings.threads, configuration);
        // exactly once is the default mode of checkpoints
        environment.enableCheckpointing(1000);
        environment.getConfig().enableObjectReuse();
        return environment;
    }

    /** Account, hour, GFLOP, time in milliseconds, identity: decoded and measured before the shuffle. */
    static DataStream<Tuple5<String, Integer, Long, Long, Long>> usage(
            StreamExecutionEnvironment environment,
            Settings settings,
            SerializableTimestampAssigner<Tuple5<String, Integer, Long, Long, Long>> times) {
        KafkaSource<Tuple5<String, Integer, Long, Long, Long>> source =
                KafkaSource.<Tuple5<String, Integer, Long, Long, Long>>builder()
                        .setBootstrapServers(settings.servers)
                        .setTopics(settings.usage)
                        .setGroupId(settings.group)
                        .setStartingOffsets(OffsetsInitializer.earliest())
                        .setDeserializer(new Decoder())
                        .setProperty("max.poll.records", "20000")
                        .setProperty("max.partition.fetch.bytes", String.valueOf(4 << 20))
                        .setProperty("isolation.level", "read_committed")
                        .setProperty("register.consumer.metrics", "false")
                        .build();
        WatermarkStrategy<Tuple5<String, Integer, Long, Long, Long>> watermarks =
                WatermarkStrategy.<Tuple5<String, Integer, Long, Long, Long>>forBoundedOutOfOrderness(
                                Duration.ofNanos(settings.latenessNanos))
                        .withTimestampAssigner(times);
        return environment.fromSource(source, watermarks, "usage");
    }

    static KafkaSink<String> sink(Settings settings) {
        String topic = settings.output;
        return KafkaSink.<String>builder()
                .setBootstrapServers(settings.servers)
                .setRecordSerializer(KafkaRecordSerializationSchema.<String>builder()
                        .setTopic(topic)
                        .setValueSerializationSchema(new SimpleStringSchema())
                        .build())
                .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
                .setTransactionalIdPrefix(settings.group)
                .setProperty("transaction.timeout.ms", "600000")
                .build();
    }

    static final class Decoder
            implements KafkaRecordDeserializationSchema<Tuple5<String, Integer, Long, Long, Long>> {
        private transient Usage usage;
        private transient Catalogue catalogue;
        private transient Names accounts;

        @Override
        public void deserialize(
                ConsumerRecord<byte[], byte[]> record,
                Collector<Tuple5<String, Integer, Long, Long, Long>> out) {
            if (usage == null) {
                usage = new Usage();
                catalogue = new Catalogue();
                accounts = new Names();
            }
            Settings.first();
            usage.decode(record.value());
            out.collect(Tuple5.of(
                    accounts.of(usage, usage.account),
                    usage.hour(),
                    usage.flop(catalogue),
                    usage.timeNanos / 1_000_000,
                    usage.identity(0)));
        }

        @Override
        public TypeInformation<Tuple5<String, Integer, Long, Long, Long>> getProducedType() {
            return Types.TUPLE(Types.STRING, Types.INT, Types.LONG, Types.LONG, Types.LONG);
        }
    }

    /** Dedup, panes, and judgement when an hour closes. */
    static final class Accounts
            extends KeyedProcessFunction<String, Tuple5<String, Integer, Long, Long, Long>, String> {
        private final Settings settings;
        private transient ValueState<AccountState> states;
        private transient Directory directory;

        Accounts(Settings settings) {
            this.settings = settings;
        }

        @Override
        public void open(OpenContext context) {
            states = getRuntimeContext()
                    .getState(new ValueStateDescriptor<>("account", AccountState.Serializer.INSTANCE));
            directory = Directory.shared(settings);
        }

        @Override
        public void processElement(
                Tuple5<String, Integer, Long, Long, Long> event, Context context, Collector<String> out)
                throws Exception {
            AccountState state = states.value();
            if (state == null) {
                state = new AccountState();
                states.update(state);
            }
            if (settings.dedup && !state.isNew(event.f4, event.f3)) {
                return;
            }
            if (state.add(event.f1, event.f2)) {
                context.timerService().registerEventTimeTimer(event.f1 * 3_600_000L);
            }
        }

        @Override
        public void onTimer(long timestamp, OnTimerContext context, Collector<String> out) throws Exception {
            int hour = (int) (timestamp / 3_600_000L);
            AccountState state = states.value();
            String account = context.getCurrentKey();
            Owner owner = directory.of(account);
            context.output(PANES, Tuple3.of(owner.country(), hour, state.pane(hour)));
            long sum = state.day(hour);
            if (owner.foreign() && sum >= settings.threshold && !state.alerted) {
                state.alerted = true;
                out.collect(Settings.line("account", account, hour, sum));
            }
            state.forget(hour - 24);
            states.update(state);
        }
    }

    /** Every account's pane of an hour comes before the watermark that closes it. */
    static final class Countries extends KeyedProcessFunction<String, Tuple3<String, Integer, Long>, String> {
        private transient ValueState<AccountState> states;

        @Override
        public void open(OpenContext context) {
            states = getRuntimeContext()
                    .getState(new ValueStateDescriptor<>("country", AccountState.Serializer.INSTANCE));
        }

        @Override
        public void processElement(Tuple3<String, Integer, Long> pane, Context context, Collector<String> out)
                throws Exception {
            AccountState state = states.value();
            if (state == null) {
                state = new AccountState();
                states.update(state);
            }
            if (state.add(pane.f1, pane.f2)) {
                context.timerService().registerEventTimeTimer(pane.f1 * 3_600_000L);
            }
        }

        @Override
        public void onTimer(long timestamp, OnTimerContext context, Collector<String> out) throws Exception {
            int hour = (int) (timestamp / 3_600_000L);
            AccountState state = states.value();
            out.collect(Settings.line("country", context.getCurrentKey(), hour, state.day(hour)));
            state.forget(hour - 24);
            states.update(state);
        }
    }
}
