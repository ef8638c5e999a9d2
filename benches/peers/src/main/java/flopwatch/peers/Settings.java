package flopwatch.peers;

import java.io.Serializable;
import java.util.concurrent.atomic.AtomicBoolean;

/** What the bench tells every peer, as `name=value` arguments. */
final class Settings implements Serializable {
    private static final AtomicBoolean FIRST = new AtomicBoolean();

    String servers;
    String usage;
    String accounts;
    String group;
    String output;
    String countries;
    String folder;
    /** GFLOP in 24 hours that an alert takes. */
    long threshold;
    long latenessNanos;
    boolean dedup;
    int partitions;
    int threads;

    static Settings parse(String[] arguments) {
        Settings settings = new Settings();
        for (String argument : arguments) {
            String[] pair = argument.split("=", 2);
            switch (pair[0]) {
                case "servers" -> settings.servers = pair[1];
                case "usage" -> settings.usage = pair[1];
                case "accounts" -> settings.accounts = pair[1];
                case "group" -> settings.group = pair[1];
                case "output" -> settings.output = pair[1];
                case "countries" -> settings.countries = pair[1];
                case "folder" -> settings.folder = pair[1];
                case "threshold" -> settings.threshold = Long.parseLong(pair[1]);
                case "lateness-seconds" -> settings.latenessNanos = Long.parseLong(pair[1]) * 1_000_000_000L;
                case "dedup" -> settings.dedup = Boolean.parseBoolean(pair[1]);
                case "partitions" -> settings.partitions = Integer.parseInt(pair[1]);
                case "threads" -> settings.threads = Integer.parseInt(pair[1]);
                default -> throw new IllegalArgumentException("no such setting: " + argument);
            }
        }
        return settings;
    }

    /** Tells the bench, once a process, that an event has been processed. */
    static void first() {
        if (!FIRST.get() && FIRST.compareAndSet(false, true)) {
            System.out.println("first");
        }
    }

    static String line(String kind, String key, int hour, long sum) {
        return kind + "," + key + "," + hour * 3_600_000L + "," + sum;
    }
}
