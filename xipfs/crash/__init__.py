"""The crash lab: what a loss of power at any moment leaves of an image, and whether it is sound.

    operations   what a workload does, one line an operation
    workloads    all of seq-1 and seq-2, and a fuzzer
    player       performs them on an image through the filesystem's own code, pages moving meanwhile
    recorder     logs what reaches the device: stores, flushes, fences, and marks between
    persistence  what of that is durable, and what is in flight: the model of the medium
    enumerator   crash states: which of the lines in flight survive
    snapshot     the tree as a program sees it
    oracle       which trees a crash may leave
    checker      one state: recovery, fsck, oracle, and life afterwards
    explorer     one workload: all of the above, and a line that replays each failure
    campaign     many workloads, on all cores

docs/CRASH.md has the model and the promises by their numbers.
"""
