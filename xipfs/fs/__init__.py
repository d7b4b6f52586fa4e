"""Names, inodes and extents in an image; what mm asks for by get_xip_mem.

superblock  SuperBlock: an open image, its inodes in memory
inode       Inode: one file in memory, read in place
extent      ExtentMap: pgoff -> image page
dentry      lookup and readdir in a directory's pages
namei       from a path to an inode, for the commands that need no mount
xip         get_xip_mem
file        contents: write, truncate, fsync
transaction changes of metadata, all or none: journal, allocator; extentwriter, dirwriter: trees
namespace   create, link, unlink, rename, mkdir, ..; attributes: chmod, xattrs; orphans: what goes
mkfs        entries -> an image: builder, inodetable, pack, pagewriter, newimage
source      a directory tree -> entries; tarsource, posix_acl: a tar stream -> entries
fsck        every invariant of an image, one function each, and its repair, another
contents    bytes and names without any mm; copyout, info, dump: what commands do with them
"""
