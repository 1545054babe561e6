from unfold.sites import UnfoldAdminSite


class ConsoleSite(UnfoldAdminSite):
    pass
