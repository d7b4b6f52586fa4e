"""The image format: bytes <-> records. No I/O and no state; docs/FORMAT.md is its only prose copy.

record      magic, checksum, dtype: what all records share
superblock  DiskSuperblock (page 0 and the last page), DiskState (page 1)
inode       DiskInode, 256 bytes each in the inode file
extent      file pages -> image pages; nodes of the extent tree
dentry      directory pages: slots sorted by key, or an index of pages
xattr       one run of pages with all attributes of an inode
group       group descriptors and bitmaps: the allocator's state, in place
journal     header and record heads of the redo log
"""
