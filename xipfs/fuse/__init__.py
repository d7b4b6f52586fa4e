"""From FUSE requests to the filesystem and mm; the mount as a whole.

    options     MountOptions: what `-o` can say
    operations  every request as a plain synchronous function; no pyfuse3 here
    mount       Mount: wires all rooms; its lock, and the one dispatch function
    view        what `stat` and the user.xipfs.* attributes show
    adapter     pyfuse3 calls -> dispatch; errors -> errno
    notifier    a thread that drops ranges from the kernel's cache
    control     the socket that `xipfs stat` and others talk to
    client      the other end of it
    server      one mount from INIT to unmount, on trio
    mountpoint  finding, replacing, unmounting: what the commands do outside the daemon

Only adapter and server need pyfuse3, only server, notifier's caller and control need trio.
"""
