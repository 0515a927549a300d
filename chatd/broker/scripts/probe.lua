-- Publish a probe, but only where messages could be published too: where the broker takes writes.
--
-- KEYS  1 a key of all probes
-- ARGV  1 the channel   2 the probe   3 seconds to keep the key
-- SET is refused where messages are, also by a broker that still lets PUBLISH through (OOM, READONLY, NOREPLICAS,
-- MISCONF). Where the key exists it changes nothing: an idle server has nothing to replicate or to write to a file.

redis.call('SET', KEYS[1], 1, 'EX', ARGV[3], 'NX')
redis.call('PUBLISH', ARGV[1], ARGV[2])
