package flopwatch.peers;

import java.util.Map;

/** The accelerators of the workloads: a part of flopwatch's catalogue, whose results it must give. */
final class Catalogue {
    record Entry(double count, double dense16) {}

    private static final Entry UNKNOWN = new Entry(1, 989.4e12);
    private static final Map<String, Entry> ACCELERATORS = Map.of(
            "nvidia-h100-sxm", new Entry(1, 989.4e12),
            "nvidia-h200-sxm", new Entry(1, 989.4e12),
            "nvidia-a100-80-sxm", new Entry(1, 312e12),
            "nvidia-l40s", new Entry(1, 362e12),
            "nvidia-l4", new Entry(1, 121e12),
            "google-tpu-v5p", new Entry(1, 459e12),
            "vcpu", new Entry(1, 0.1e12));
    private static final Map<String, Entry> INSTANCES = Map.of("p5.48xlarge", new Entry(8, 989.4e12));

    private final Names names = new Names();

    Entry resolve(Usage usage) {
        if (usage.accelerator.length > 0) {
            return ACCELERATORS.getOrDefault(names.of(usage, usage.accelerator), UNKNOWN);
        }
        return INSTANCES.getOrDefault(names.of(usage, usage.instance), UNKNOWN);
    }
}
