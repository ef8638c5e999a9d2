package flopwatch.peers;

import java.io.IOException;
import java.util.Arrays;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.TypeSerializerSingleton;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * Panes and identities of one key, with a serialiser of its own. Heap state is copied on the first write after a
 * checkpoint began: a copy shares the sets of identities, and a shared set is cloned when something is added to it.
 */
final class AccountState {
    private static final long BUCKET_MILLIS = 300_000;
    /** The horizon of 2 h and the bucket in progress. */
    private static final int BUCKETS = 25;

    boolean alerted;
    private int[] hours = new int[2];
    private long[] sums = new long[2];
    private int panes;
    private long[] bucketNumbers = new long[2];
    private LongSet[] buckets = new LongSet[2];
    private int bucketCount;

    /** Whether the identity was not seen in its own bucket: exact duplicates carry the time of the original. */
    boolean isNew(long identity, long timeMillis) {
        long number = timeMillis / BUCKET_MILLIS;
        for (int index = bucketCount - 1; index >= 0; index--) {
            if (bucketNumbers[index] == number) {
                if (buckets[index].contains(identity)) {
                    return false;
                }
                if (buckets[index].shared) {
                    buckets[index] = buckets[index].copy();
                }
                buckets[index].add(identity);
                return true;
            }
        }
        expire(number - BUCKETS);
        if (bucketCount == buckets.length) {
            buckets = Arrays.copyOf(buckets, bucketCount * 2);
            bucketNumbers = Arrays.copyOf(bucketNumbers, bucketCount * 2);
        }
        LongSet set = new LongSet();
        set.add(identity);
        bucketNumbers[bucketCount] = number;
        buckets[bucketCount++] = set;
        return true;
    }

    private void expire(long bound) {
        int kept = 0;
        for (int index = 0; index < bucketCount; index++) {
            if (bucketNumbers[index] > bound) {
                bucketNumbers[kept] = bucketNumbers[index];
                buckets[kept++] = buckets[index];
            }
        }
        Arrays.fill(buckets, kept, bucketCount, null);
        bucketCount = kept;
    }

    /** Adds to a pane and says whether it is a new one. */
    boolean add(int hour, long sum) {
        for (int index = panes - 1; index >= 0; index--) {
            if (hours[index] == hour) {
                sums[index] += sum;
                return false;
            }
        }
        if (panes == hours.length) {
            hours = Arrays.copyOf(hours, panes * 2);
            sums = Arrays.copyOf(sums, panes * 2);
        }
        hours[panes] = hour;
        sums[panes++] = sum;
        return true;
    }

    long pane(int hour) {
        long sum = 0;
        for (int index = 0; index < panes; index++) {
            sum += hours[index] == hour ? sums[index] : 0;
        }
        return sum;
    }

    /** The 24 hours up to `last`. */
    long day(int last) {
        long sum = 0;
        for (int index = 0; index < panes; index++) {
            sum += hours[index] > last - 24 && hours[index] <= last ? sums[index] : 0;
        }
        return sum;
    }

    void forget(int until) {
        int kept = 0;
        for (int index = 0; index < panes; index++) {
            if (hours[index] > until) {
                hours[kept] = hours[index];
                sums[kept++] = sums[index];
            }
        }
        panes = kept;
    }

    private AccountState copy() {
        AccountState copy = new AccountState();
        copy.alerted = alerted;
        copy.hours = hours.clone();
        copy.sums = sums.clone();
        copy.panes = panes;
        copy.bucketNumbers = bucketNumbers.clone();
        copy.buckets = buckets.clone();
        copy.bucketCount = bucketCount;
        for (int index = 0; index < bucketCount; index++) {
            buckets[index].shared = true;
        }
        return copy;
    }

    /** Open addressing; 0 stands for empty, so an identity of 0 is taken for 1. */
    static final class LongSet {
        private long[] slots = new long[4];
        private int count;
        boolean shared;

        boolean contains(long value) {
            value = value == 0 ? 1 : value;
            int mask = slots.length - 1;
            for (int slot = (int) value & mask; slots[slot] != 0; slot = slot + 1 & mask) {
                if (slots[slot] == value) {
                    return true;
                }
            }
            return false;
        }

        void add(long value) {
            if (4 * (count + 1) > 3 * slots.length) {
                long[] old = slots;
                slots = new long[old.length * 2];
                for (long each : old) {
                    if (each != 0) {
                        put(each);
                    }
                }
            }
            put(value == 0 ? 1 : value);
            count++;
        }

        private void put(long value) {
            int mask = slots.length - 1;
            int slot = (int) value & mask;
            while (slots[slot] != 0) {
                slot = slot + 1 & mask;
            }
            slots[slot] = value;
        }

        LongSet copy() {
            LongSet copy = new LongSet();
            copy.slots = slots.clone();
            copy.count = count;
            return copy;
        }
    }

    static final class Serializer extends TypeSerializerSingleton<AccountState> {
        static final Serializer INSTANCE = new Serializer();

        @Override
        public boolean isImmutableType() {
            return false;
        }

        @Override
        public AccountState createInstance() {
            return new AccountState();
        }

        @Override
        public AccountState copy(AccountState from) {
            return from.copy();
        }

        @Override
        public AccountState copy(AccountState from, AccountState reuse) {
            return from.copy();
        }

        @Override
        public int getLength() {
            return -1;
        }

        @Override
        public void serialize(AccountState state, DataOutputView target) throws IOException {
            target.writeBoolean(state.alerted);
            target.writeInt(state.panes);
            for (int index = 0; index < state.panes; index++) {
                target.writeInt(state.hours[index]);
                target.writeLong(state.sums[index]);
            }
            target.writeInt(state.bucketCount);
            for (int index = 0; index < state.bucketCount; index++) {
                LongSet set = state.buckets[index];
                target.writeLong(state.bucketNumbers[index]);
                target.writeInt(set.count);
                for (long value : set.slots) {
                    if (value != 0) {
                        target.writeLong(value);
                    }
                }
            }
        }

        @Override
        public AccountState deserialize(DataInputView source) throws IOException {
            AccountState state = new AccountState();
            state.alerted = source.readBoolean();
            int panes = source.readInt();
            for (int index = 0; index < panes; index++) {
                int hour = source.readInt();
                state.add(hour, source.readLong());
            }
            state.bucketCount = source.readInt();
            int room = Math.max(2, state.bucketCount);
            state.bucketNumbers = new long[room];
            state.buckets = new LongSet[room];
            for (int index = 0; index < state.bucketCount; index++) {
                state.bucketNumbers[index] = source.readLong();
                LongSet set = new LongSet();
                int count = source.readInt();
                for (int added = 0; added < count; added++) {
                    set.add(source.readLong());
                }
                state.buckets[index] = set;
            }
            return state;
        }

        @Override
        public AccountState deserialize(AccountState reuse, DataInputView source) throws IOException {
            return deserialize(source);
        }

        @Override
        public void copy(DataInputView source, DataOutputView target) throws IOException {
            serialize(deserialize(source), target);
        }

        @Override
        public TypeSerializerSnapshot<AccountState> snapshotConfiguration() {
            return new Snapshot();
        }
    }

    public static final class Snapshot extends SimpleTypeSerializerSnapshot<AccountState> {
        public Snapshot() {
            super(() -> Serializer.INSTANCE);
        }
    }
}
