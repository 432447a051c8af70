"""Structure times family, and the named models of the sciences, a page each. They know no engine, and no fit knows them."""
