"""Small things that everything else uses, and that use nothing of looper but each other."""
