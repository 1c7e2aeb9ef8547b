"""One image cut into tiles that suit the bundle and fit the memory."""
