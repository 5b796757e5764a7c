"""The embedded world: scenes, a renderer, judges, and the build of everything that the package ships."""
