class Server:
    def __init__(self, d, version=18):
        self.d = d

    def connection(self, role="agentmem_app", database="agentmem"):
        return {"NAME": database, "USER": role, "PASSWORD": "x", "HOST": "", "PORT": ""}
