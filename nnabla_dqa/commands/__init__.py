"""The subcommands of ``nnabla-dqa``, one module each: ``add`` declares it, ``run`` does it."""
