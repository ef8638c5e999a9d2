package flopwatch.peers;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** Names that occur again and again, as strings made once: saves an allocation and a copy an event. */
final class Names {
    private byte[][] keys = new byte[1 << 12][];
    private String[] values = new String[1 << 12];
    private int count;

    String of(Usage usage, Usage.Text text) {
        int slot = slot(keys, usage.bytes, text.offset, text.length, usage.hash(text, 0));
        if (keys[slot] == null) {
            if (2 * ++count > keys.length) {
                grow();
                slot = slot(keys, usage.bytes, text.offset, text.length, usage.hash(text, 0));
            }
            keys[slot] = Arrays.copyOfRange(usage.bytes, text.offset, text.offset + text.length);
            values[slot] = new String(keys[slot], StandardCharsets.UTF_8);
        }
        return values[slot];
    }

    private static int slot(byte[][] keys, byte[] bytes, int offset, int length, long hash) {
        int mask = keys.length - 1;
        int slot = (int) hash & mask;
        while (keys[slot] != null
                && !Arrays.equals(keys[slot], 0, keys[slot].length, bytes, offset, offset + length)) {
            slot = slot + 1 & mask;
        }
        return slot;
    }

    private void grow() {
        byte[][] oldKeys = keys;
        String[] oldValues = values;
        keys = new byte[oldKeys.length * 4][];
        values = new String[keys.length];
        Usage probe = new Usage();
        for (int index = 0; index < oldKeys.length; index++) {
            if (oldKeys[index] == null) {
                continue;
            }
            probe.bytes = oldKeys[index];
            probe.id.offset = 0;
            probe.id.length = oldKeys[index].length;
            int slot = slot(keys, probe.bytes, 0, probe.id.length, probe.hash(probe.id, 0));
            keys[slot] = oldKeys[index];
            values[slot] = oldValues[index];
        }
    }
}
