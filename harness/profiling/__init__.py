"""Operation counts, latency and memory: functions of explicit inputs that return records and leave nothing behind."""
