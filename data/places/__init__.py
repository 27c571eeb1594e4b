"""Where the files of a source lie, what they are known by, and how they are had."""
