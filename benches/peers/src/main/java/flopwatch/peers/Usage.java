package flopwatch.peers;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * The fields of a usage event that the task needs, read by hand from protobuf's wire format into an object that is
 * used again: nothing is allocated for a record, and names stay where they lie.
 */
final class Usage {
    private static final VarHandle LONGS =
            MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
    private static final VarHandle INTS =
            MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
    static final long HOUR_NANOS = 3_600_000_000_000L;

    /** A run of bytes in the record. */
    static final class Text {
        int offset;
        int length;
    }

    byte[] bytes;
    final Text id = new Text();
    final Text source = new Text();
    final Text account = new Text();
    final Text accelerator = new Text();
    final Text instance = new Text();
    double quantity;
    long startNanos;
    long endNanos;
    long timeNanos;
    float utilization;
    float tensorActive;

    private int at;

    void decode(byte[] value) {
        bytes = value;
        at = 0;
        id.length = source.length = account.length = accelerator.length = instance.length = 0;
        quantity = 0;
        startNanos = endNanos = timeNanos = 0;
        utilization = tensorActive = Float.NaN;
        while (at < value.length) {
            int tag = (int) varint();
            switch (tag) {
                case 1 << 3 | 2 -> text(id);
                case 2 << 3 | 2 -> text(source);
                case 3 << 3 | 2 -> text(account);
                case 7 << 3 | 2 -> text(accelerator);
                case 8 << 3 | 2 -> text(instance);
                case 9 << 3 | 1 -> quantity = Double.longBitsToDouble(fixed64());
                case 10 << 3 | 1 -> startNanos = fixed64();
                case 11 << 3 | 1 -> endNanos = fixed64();
                case 12 << 3 | 1 -> timeNanos = fixed64();
                case 14 << 3 | 2 -> telemetry();
                default -> skip(tag);
            }
        }
        if (timeNanos == 0) {
            timeNanos = endNanos;
        }
    }

    private void telemetry() {
        int length = (int) varint();
        int end = at + length;
        while (at < end) {
            int tag = (int) varint();
            switch (tag) {
                case 1 << 3 | 5 -> utilization = ratio();
                case 2 << 3 | 5 -> tensorActive = ratio();
                default -> skip(tag);
            }
        }
    }

    /** A ratio outside 0..1 is as good as none. */
    private float ratio() {
        float value = Float.intBitsToFloat((int) INTS.get(bytes, at));
        at += 4;
        return value >= 0 && value <= 1 ? value : Float.NaN;
    }

    private void text(Text text) {
        text.length = (int) varint();
        text.offset = at;
        at += text.length;
    }

    private long fixed64() {
        long value = (long) LONGS.get(bytes, at);
        at += 8;
        return value;
    }

    private long varint() {
        byte first = bytes[at++];
        if (first >= 0) {
            return first;
        }
        long value = first & 0x7f;
        for (int shift = 7; ; shift += 7) {
            byte next = bytes[at++];
            value |= (long) (next & 0x7f) << shift;
            if (next >= 0) {
                return value;
            }
        }
    }

    private void skip(int tag) {
        switch (tag & 7) {
            case 0 -> varint();
            case 1 -> at += 8;
            case 2 -> {
                int length = (int) varint();
                at += length;
            }
            case 5 -> at += 4;
            default -> throw new IllegalArgumentException("no usage event: tag " + tag);
        }
    }

    /** The number of the hour that the interval lies in, named by its end. The workloads' intervals never straddle. */
    int hour() {
        return (int) ((endNanos - 1) / HOUR_NANOS) + 1;
    }

    /** The estimate in GFLOP, by the arithmetic of the contract: left to right, rounded once. */
    long flop(Catalogue catalogue) {
        Catalogue.Entry entry = catalogue.resolve(this);
        double seconds = (double) (endNanos - startNanos) / 1e9;
        double used = quantity * entry.count() * seconds;
        double share = 0.33;
        if (!Float.isNaN(tensorActive)) {
            share = tensorActive;
        } else if (!Float.isNaN(utilization)) {
            share = 0.33 * (double) utilization;
        }
        return Math.round(used * entry.dense16() * share / 1e9);
    }

    /** 64 bits of a hash of source and id. */
    long identity(long seed) {
        return hash(id, hash(source, seed));
    }

    long hash(Text text, long seed) {
        long hash = seed ^ text.length * 0x9E3779B97F4A7C15L;
        int from = text.offset;
        int end = from + text.length;
        for (; from + 8 <= end; from += 8) {
            hash = mix(hash ^ (long) LONGS.get(bytes, from));
        }
        long rest = 0;
        for (; from < end; from++) {
            rest = rest << 8 | bytes[from] & 0xff;
        }
        return mix(hash ^ rest);
    }

    private static long mix(long value) {
        value = (value ^ value >>> 32) * 0xD6E8FEB86659FD93L;
        value = (value ^ value >>> 29) * 0xA0761D6478BD642FL;
        return value ^ value >>> 32;
    }
}
