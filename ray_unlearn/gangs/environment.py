"""The environment of a CPU worker."""

from __future__ import annotations

WORKER_MALLOC = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {
            "mmap_max": 0,  # large blocks come from the heap too
            "trim_threshold": 1 << 62,  # whose end is never given back
            "arena_max": 1,  # a thread's own arena holds no block above 64 MiB, and Ray Train computes in a thread
            "tcache_count": 0,  # or the cached ends of aligned blocks keep freed ones from growing together
            "hugetlb": 1,  # pages of 2 MiB where the system gives them on request
        }.items()
    )
}
"""What was freed is kept for the next step, because every new page costs a fault. A process must start with it; other C
libraries than glibc take no notice."""
WORKER_ENVIRONMENT = {
    **WORKER_MALLOC,
    # Threads that wait give their core away soon: beside busy processes, those that spin made a trial 20 times slower.
    "GOMP_SPINCOUNT": "20000",
    # Nothing compiles; DeepSpeed would load torch's compiler for one of its optimizers.
    "TORCHDYNAMO_DISABLE": "1",
}
