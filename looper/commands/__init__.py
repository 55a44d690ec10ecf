"""The commands of `looper`: a module or folder for each."""
