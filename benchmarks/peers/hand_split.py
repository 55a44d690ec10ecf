"""By hand, on replicas: one iterator over whole batches on each worker, of which each replica takes its slice."""

from benchmarks.peers.hand_replicas import OnReplicas
from benchmarks.peers.hand_written import serve

if __name__ == "__main__":
    serve(OnReplicas)
