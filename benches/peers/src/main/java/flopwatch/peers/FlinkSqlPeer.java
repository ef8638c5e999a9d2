package flopwatch.peers;

import java.time.LocalDateTime;
import java.time.ZoneOffset;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple4;
import org.apache.flink.api.java.tuple.Tuple5;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.Table;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.types.Row;

/**
 * The windows of the task in Flink SQL: HOP of 24 hours by one hour. It decodes, measures and joins as the DataStream
 * job does, has no dedup, and says an account again for every hour that it is over the threshold.
 */
public final class FlinkSqlPeer {
    public static void main(String[] arguments) throws Exception {
        Settings settings = Settings.parse(arguments);
        StreamExecutionEnvironment environment = FlinkPeer.environment(settings);
        StreamTableEnvironment tables = StreamTableEnvironment.create(environment);
        tables.getConfig().setLocalTimeZone(ZoneOffset.UTC);
        // windows go by an instant within the hour used; the meter's time may lie after the hour's end
        DataStream<Tuple4<String, String, Boolean, Long>> joined = FlinkPeer.usage(
                        environment, settings, (event, recorded) -> Math.min(event.f3, event.f1 * 3_600_000L - 1))
                .map(new Join(settings))
                .returns(Types.TUPLE(Types.STRING, Types.STRING, Types.BOOLEAN, Types.LONG));
        // the source's own watermarks: of each Kafka partition, so that reading one faster drops nothing
        Schema schema = Schema.newBuilder()
                .columnByMetadata("rowtime", "TIMESTAMP_LTZ(3)")
                .watermark("rowtime", "SOURCE_WATERMARK()")
                .build();
        tables.createTemporaryView("usage_events", joined, schema);
        String windows = " FROM TABLE("
                + "HOP(TABLE usage_events, DESCRIPTOR(rowtime), INTERVAL '1' HOUR, INTERVAL '24' HOUR)) ";
        Table accounts = tables.sqlQuery("SELECT f0, window_end, SUM(f3) AS total" + windows
                + "WHERE f2 GROUP BY f0, window_start, window_end HAVING SUM(f3) >= " + settings.threshold);
        Table countries = tables.sqlQuery("SELECT f1, window_end, SUM(f3) AS total" + windows
                + "GROUP BY f1, window_start, window_end");
        lines(tables, "account", accounts)
                .union(lines(tables, "country", countries))
                .sinkTo(FlinkPeer.sink(settings));
        environment.execute("flopwatch SQL peer");
    }

    private static DataStream<String> lines(StreamTableEnvironment tables, String kind, Table table) {
        return tables.toDataStream(table).map(row -> line(kind, row)).returns(Types.STRING);
    }

    private static String line(String kind, Row row) {
        LocalDateTime end = row.getFieldAs(1);
        int hour = (int) (end.toInstant(ZoneOffset.UTC).toEpochMilli() / 3_600_000L);
        long total = row.getFieldAs(2);
        return Settings.line(kind, row.getFieldAs(0), hour, total);
    }

    /** Account, country, foreign, GFLOP. */
    private static final class Join
            extends RichMapFunction<
                    Tuple5<String, Integer, Long, Long, Long>, Tuple4<String, String, Boolean, Long>> {
        private final Settings settings;
        private transient Directory directory;

        Join(Settings settings) {
            this.settings = settings;
        }

        @Override
        public void open(OpenContext context) {
            directory = Directory.shared(settings);
        }

        @Override
        public Tuple4<String, String, Boolean, Long> map(Tuple5<String, Integer, Long, Long, Long> event) {
            Owner owner = directory.of(event.f0);
            return Tuple4.of(event.f0, owner.country(), owner.foreign(), event.f2);
        }
    }
}
