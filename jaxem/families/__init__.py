"""p(x | component), one family a file; they know neither models nor the engine. Models and all above import them."""
