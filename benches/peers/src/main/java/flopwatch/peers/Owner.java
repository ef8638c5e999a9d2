package flopwatch.peers;

import java.nio.charset.StandardCharsets;

/** What the directory says of an account: country of origin, and whether anything makes it foreign. */
record Owner(String country, boolean foreign) {
    /** An account that the directory lacks counts as foreign. */
    static final Owner UNKNOWN = new Owner("ZZ", true);
    private static final String HOME = "US";

    /** From flopwatch.v1.Account; the basis is parent, country, incorporation, payment, in this order. */
    static Owner decode(byte[] bytes) {
        String[] countries = new String[4];
        int at = 0;
        while (at < bytes.length) {
            int tag = bytes[at++] & 0xff;
            if ((tag & 0x80) != 0) {
                tag = tag & 0x7f | bytes[at++] << 7;
            }
            switch (tag & 7) {
                case 0 -> {
                    while (bytes[at++] < 0) {}
                }
                case 1 -> at += 8;
                case 5 -> at += 4;
                case 2 -> {
                    int length = 0;
                    for (int shift = 0; ; shift += 7) {
                        byte next = bytes[at++];
                        length |= (next & 0x7f) << shift;
                        if (next >= 0) {
                            break;
                        }
                    }
                    int place = switch (tag >> 3) {
                        case 6 -> 0;
                        case 4 -> 1;
                        case 5 -> 2;
                        case 7 -> 3;
                        default -> -1;
                    };
                    if (place >= 0) {
                        countries[place] = new String(bytes, at, length, StandardCharsets.UTF_8);
                    }
                    at += length;
                }
                default -> throw new IllegalArgumentException("no account: tag " + tag);
            }
        }
        String origin = null;
        boolean foreign = false;
        for (String country : countries) {
            if (country != null && !country.isEmpty()) {
                origin = origin == null ? country : origin;
                foreign |= !country.equals(HOME);
            }
        }
        return origin == null ? UNKNOWN : new Owner(origin, foreign);
    }
}
