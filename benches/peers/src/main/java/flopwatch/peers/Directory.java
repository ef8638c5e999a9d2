package flopwatch.peers;

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** The account directory, read to its end once a process before the first event, as flopwatch does. */
final class Directory {
    private static Directory shared;

    private final Map<String, Owner> owners = new HashMap<>();

    static synchronized Directory shared(Settings settings) {
        if (shared == null) {
            shared = new Directory(settings);
        }
        return shared;
    }

    Owner of(String account) {
        return owners.getOrDefault(account, Owner.UNKNOWN);
    }

    private Directory(Settings settings) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", settings.servers);
        properties.put("enable.auto.commit", "false");
        try (KafkaConsumer<String, byte[]> consumer =
                new KafkaConsumer<>(properties, new StringDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(settings.accounts).stream()
                    .map(info -> new TopicPartition(info.topic(), info.partition()))
                    .toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(it -> consumer.position(it) < ends.get(it))) {
                for (ConsumerRecord<String, byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    if (record.value() == null) {
                        owners.remove(record.key());
                    } else {
                        owners.put(record.key(), Owner.decode(record.value()));
                    }
                }
            }
        }
    }
}
