"""What tests share: stores, servers, faults."""
